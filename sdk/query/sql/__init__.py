"""SQL over stored runs by DuckDB: relations as Arrow datasets that read only what a query's filters may need (docs/sql.md)."""
