"""The package version, its one definition."""

__version__ = "0.1.0"
