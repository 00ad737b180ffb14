"""General helpers: files, locks, signals, streams, checks, registries, optional and lazy imports."""
