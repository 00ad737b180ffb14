"""Rendering of a suite's report: an HTML page, CSV files, Markdown tables and figures."""
