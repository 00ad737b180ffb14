"""Weight files: reading and writing them, checking them, and what the package ships.

    >>> from celo2.weights import load_checkpoint
    >>> load_checkpoint("celo2").config.variant
    'celo2'

`checkpoint` holds `Weights` and its verbs; each format has a file of its own (`safetensors_format`, and
`theta_state` for the flax files of the public code); `schema` decides whether arrays fit options; `sources`
finds files in the package, on disk and on the hub; `digests` knows the files that were shipped or released.
"""

from celo2.weights.checkpoint import Weights, load_checkpoint, save_weights

__all__ = ["Weights", "load_checkpoint", "save_weights"]
