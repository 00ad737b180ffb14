"""Hand-designed optimizers from Optax, each at its published settings.

Where a publication does not specify weight decay, it is AdamW's: decoupled and multiplied by the learning
rate. LARS and LAMB include it in their trust ratio, as in their papers.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from celo2.baselines.spec import MakeOptimizer, OptimizerSpec, decoupled, scaled
from celo2.constants import ADAMW_BETAS

ADAM_RANGE = (3e-4, 1e-1)  # for optimizers that move each element by about the learning rate, like Adam
SGD_MOMENTUM = 0.9
PRODIGY_BETAS = (0.9, 0.999)


def _with_decay(direction: Callable[[], optax.GradientTransformation]) -> MakeOptimizer:
    return lambda learning_rate, weight_decay: decoupled(direction(), learning_rate, weight_decay)


def _make_adafactor() -> optax.GradientTransformation:
    """Builds `optax.adafactor` without its learning rate: no momentum, relative to the parameter's size."""
    return optax.chain(
        optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), optax.scale_by_param_block_rms()
    )


def _make_fromage(learning_rate: optax.ScalarOrSchedule, weight_decay: float) -> optax.GradientTransformation:
    decay = optax.add_decayed_weights(scaled(learning_rate, -weight_decay))
    return optax.chain(optax.fromage(learning_rate), decay)


def _make_prodigy(learning_rate: optax.ScalarOrSchedule, weight_decay: float) -> optax.GradientTransformation:
    """Builds Prodigy with a copy of the initial parameters, so that they and its state can be donated."""
    prodigy = optax.contrib.prodigy(
        learning_rate, betas=PRODIGY_BETAS, weight_decay=weight_decay, safeguard_warmup=True
    )
    return optax.GradientTransformationExtraArgs(
        lambda params: prodigy.init(jax.tree.map(jnp.copy, params)), prodigy.update
    )


SPECS = (
    OptimizerSpec(
        "adabelief",
        "AdaBelief, betas 0.9 and 0.999, epsilon 1e-16",
        _with_decay(optax.scale_by_belief),
        ADAM_RANGE,
        reference="arXiv 2010.07468",
        origin="optax.adabelief",
    ),
    OptimizerSpec(
        "adafactor",
        "Adafactor: factored second moment, no momentum, steps relative to the parameter's size",
        _with_decay(_make_adafactor),
        (1e-3, 1.0),
        reference="arXiv 1804.04235",
        origin="optax.adafactor",
    ),
    OptimizerSpec(
        "adagrad",
        "AdaGrad, accumulator from 0.1",
        _with_decay(optax.scale_by_rss),
        (3e-3, 1.0),
        reference="JMLR 12 (2011), 2121-2159",
        origin="optax.adagrad",
    ),
    OptimizerSpec(
        "adam",
        "Adam, betas 0.9 and 0.999 (with weight decay: AdamW at these betas)",
        _with_decay(optax.scale_by_adam),
        ADAM_RANGE,
        reference="arXiv 1412.6980",
        origin="optax.adam",
    ),
    OptimizerSpec(
        "adamw",
        "AdamW, betas 0.9 and 0.95, usual for language models",
        lambda learning_rate, weight_decay: optax.adamw(
            learning_rate, *ADAMW_BETAS, weight_decay=weight_decay
        ),
        ADAM_RANGE,
        reference="arXiv 1711.05101",
        origin="optax.adamw",
    ),
    OptimizerSpec(
        "fromage",
        "Fromage: steps relative to each tensor's norm, which stays bounded",
        _make_fromage,
        (1e-3, 3e-1),
        reference="arXiv 2002.03432",
        origin="optax.fromage",
    ),
    OptimizerSpec(
        "lamb",
        "LAMB: Adam's steps relative to each tensor's norm; weight decay under the trust ratio",
        lambda learning_rate, weight_decay: optax.lamb(learning_rate, weight_decay=weight_decay),
        (1e-3, 1e-1),
        reference="arXiv 1904.00962",
        origin="optax.lamb",
    ),
    OptimizerSpec(
        "lars",
        "LARS: momentum 0.9, trust coefficient 0.001; weight decay under the trust ratio",
        lambda learning_rate, weight_decay: optax.lars(learning_rate, weight_decay=weight_decay),
        (1e-1, 1e2),
        reference="arXiv 1708.03888",
        origin="optax.lars",
    ),
    OptimizerSpec(
        "lion",
        "Lion: the sign of a momentum, betas 0.9 and 0.99",
        _with_decay(optax.scale_by_lion),
        (3e-5, 3e-2),
        reference="arXiv 2302.06675",
        origin="optax.lion",
    ),
    OptimizerSpec(
        "nadamw",
        "NAdamW: AdamW with Nesterov momentum, betas 0.9 and 0.999",
        _with_decay(lambda: optax.scale_by_adam(nesterov=True)),
        ADAM_RANGE,
        reference="Dozat, 2016 (ICLR workshop)",
        origin="optax.nadamw",
    ),
    OptimizerSpec(
        "prodigy",
        "Prodigy: Adam that estimates its own rate, which the learning rate multiplies",
        _make_prodigy,
        (1e-1, 1e1),
        reference="arXiv 2306.06101",
        origin="optax.contrib.prodigy",
    ),
    OptimizerSpec(
        "radam",
        "RAdam: Adam with rectified early steps, betas 0.9 and 0.999",
        _with_decay(optax.scale_by_radam),
        ADAM_RANGE,
        reference="arXiv 1908.03265",
        origin="optax.radam",
    ),
    OptimizerSpec(
        "rmsprop",
        "RMSProp, decay 0.9, no momentum",
        _with_decay(optax.scale_by_rms),
        (1e-4, 1e-1),
        reference="Tieleman and Hinton, 2012 (Coursera lecture 6.5)",
        origin="optax.rmsprop",
    ),
    OptimizerSpec(
        "schedule-free-adamw",
        "Schedule-Free AdamW, betas 0.9 and 0.999: constant rate after warm-up, validated at its average",
        lambda learning_rate, weight_decay: optax.contrib.schedule_free_adamw(
            learning_rate,  # type: ignore[arg-type]  # a schedule too, by its code
            weight_decay=weight_decay,
        ),
        (1e-3, 1e-1),
        reference="arXiv 2405.15682",
        origin="optax.contrib.schedule_free_adamw",
        schedule="constant",
        eval_params=optax.contrib.schedule_free_eval_params,
    ),
    OptimizerSpec(
        "sgd",
        "SGD without momentum",
        _with_decay(optax.identity),
        (1e-2, 1e1),
        reference="Robbins and Monro, 1951",
        origin="optax.sgd",
    ),
    OptimizerSpec(
        "sgdm",
        "SGD with momentum 0.9",
        _with_decay(lambda: optax.trace(SGD_MOMENTUM)),
        (1e-3, 1.0),
        reference="Polyak, 1964",
        origin="optax.sgd",
    ),
    OptimizerSpec(
        "sm3",
        "SM3: AdaGrad with one accumulator for each row and column, momentum 0.9",
        _with_decay(optax.scale_by_sm3),
        (3e-3, 1.0),
        reference="arXiv 1901.11150",
        origin="optax.sm3",
    ),
    OptimizerSpec(
        "yogi",
        "Yogi: Adam whose second moment falls slowly, betas 0.9 and 0.999, epsilon 1e-3",
        _with_decay(optax.scale_by_yogi),
        (1e-3, 3e-1),
        reference="NeurIPS 31 (2018)",
        origin="optax.yogi",
    ),
)
