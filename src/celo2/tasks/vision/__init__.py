"""Image data sets and the tasks on them: classifiers, convolutions, vision transformers."""
