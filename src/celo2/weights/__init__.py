"""Loads, checks and saves weights: shipped, from a file, or from the Hugging Face hub.

Weights are NumPy arrays with the options they were trained under and their provenance; nothing here
needs JAX or PyTorch, and no file is read with pickle.

    >>> from celo2.weights import load_checkpoint
    >>> load_checkpoint("celo2").config.variant
    'celo2'

`checkpoint` has `Weights` (of Celo2's rule), `ZooWeights` (of the optimizers in `celo2.zoo`) and their
functions; `safetensors_format` and `theta_state` (flax files of the public code) read and write the two
formats; `port_format` reads files of the public PyTorch port; `schema` names the arrays and checks them
against options; `sources` finds files in the package, on disk and on the hub; `digests` checks their
content and recognises released files.
"""

from celo2.weights.checkpoint import Weights, load_checkpoint, save_weights

__all__ = ["Weights", "load_checkpoint", "save_weights"]
