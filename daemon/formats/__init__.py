"""File formats of other tools, their bytes only: what both an export and an import need."""
