"""Report of meta-training runs: their history read from files, figures, an HTML page."""
