"""Corpora and language-modelling tasks: LSTMs and transformers in small and published sizes."""
