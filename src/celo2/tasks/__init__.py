"""The problems: what meta-training learns from and what a comparison trains."""
