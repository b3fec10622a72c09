"""Storage: the embedded server, Babylon's tables, our own schema `rl_assets` and its migrations, and typed Parquet."""
