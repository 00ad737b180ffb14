"""Infrastructure of a meta-training run: folder, checkpoints, metrics, loggers, callbacks, processes."""
