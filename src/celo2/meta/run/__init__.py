"""Infrastructure of a meta-training run: options, folder, checkpoints, metrics, loggers, callbacks, processes."""
