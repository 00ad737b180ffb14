"""Reports meta-training runs: reads their history from files, draws figures and renders an HTML page."""
