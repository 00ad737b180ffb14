"""The report of a meta-training run: its history read back, figures, an HTML page."""
