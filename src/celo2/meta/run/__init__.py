"""A meta-training run around its loop: folder, checkpoints, metrics, loggers, callbacks, processes."""
