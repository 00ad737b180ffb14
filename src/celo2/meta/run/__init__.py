"""Infrastructure of a meta-training run: options, folder, checkpoints, loggers, callbacks, processes."""
