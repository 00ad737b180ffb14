"""The report of a suite: an HTML page, CSV files, curves and figures."""
