"""General helpers: files, locks, signals, output streams, argument checks, optional dependencies."""
