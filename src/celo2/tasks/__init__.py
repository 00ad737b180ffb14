"""Tasks: the problems that meta-training learns from and that comparisons train on."""
