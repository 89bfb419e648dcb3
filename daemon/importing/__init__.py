"""The way in: runs that other tools have written, made runs of a store (docs/import.md)."""
