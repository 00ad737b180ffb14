"""General helpers: files, locks, signals, streams, checks, registries, and optional or lazy imports."""
