"""Fixed constants of the rule (not configurable), shared by all backends.

Source: arXiv 2602.19142, section 3, and its public code.
"""

from __future__ import annotations

GRAD_CLIP = 1000.0  # bound of every gradient element, applied first
FACTORED_EPS = 1e-30  # added to g² before the row and column means
CLIPPED_GRAD = 0.1  # bound of the clipped-gradient feature
RSQRT_EPS = 1e-8  # under every reciprocal root of an accumulator
FACTOR_FLOOR = 1e-9  # lower bound of the row factor's denominator and under the factors' roots
NORM_EPS = 1e-9  # under the root of both normalisers, of the input channels and of the step
PRECONDITION_EPS = 1e-6  # under the root of `precondition_output`

ADAMW_LR_SCALE = 20.0  # learning rate of Celo2's AdamW branch over the rule's: `mult_1d` of the reference
ADAMW_BETAS = (0.9, 0.95)  # of that branch

RULE_OPTIMIZERS = ("celo2", "celo2-plus", "celo2-eigenbasis", "celo2-base")
"""Names of the optimizers that use the rule, in the registry and in reports."""

FLOAT32_MAX = 3.4028234663852886e38  # the rule computes in float32; larger options are refused
FLOAT32_TINY = 1.1754943508222875e-38  # the least normal number

CODE_LEVELS = 127  # largest code of a momentum in one byte
NOISE_VALUES = 1 << 16  # number of values of the noise that stochastic rounding adds

# Of the harness; sources in `celo2.jax.harness`.
TINY = 1e-30  # added to norms in denominators
ROW_EPS = 1e-10  # added to the root mean squares of rows in denominators: NorMuon's code
BASIS_DECAY = 0.95  # of the factors whose eigenbasis the direction is computed in: SOAP's code
MAX_BASIS_SIDE = 1024  # the factor of a longer side would often be larger than the matrix itself

GRADIENT_DECAY = 0.99  # decay of the running mean that normalises gradients; not in the paper
