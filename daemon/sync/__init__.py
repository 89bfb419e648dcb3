"""Carrying runs to where they will be looked at: `stepd sync` (docs/sync.md)."""
