"""LM-30M on FineWeb-Edu, 18,258 steps of 64 × 512 tokens: Celo2 against tuned AdamW and Muon.

python benchmarks/real_scale/lm_30m.py --help
"""

from __future__ import annotations

import optax
from experiment import SHARED_DIFFERENCES, Experiment, run
from grids import SHARED_GRIDS, Grid, log_uniform
from table import Figure
from token_shards import need_tokens

from celo2.baselines import OptimizerSpec

TRAIN_TOKENS = 598_310_400  # 20 per parameter, of 29.9 M

ADAMW = OptimizerSpec(
    "adamw-lm-30m",
    "AdamW, betas 0.8926 and 0.9977, those of the public code for batches of 64",
    lambda rate, decay: optax.adamw(rate, b1=0.8926, b2=0.9977, weight_decay=decay),
    (3e-4, 3e-2),
    reference="arXiv 1711.05101",
    origin="optax.adamw",
)

EXPERIMENT = Experiment(
    task="lm-30m",
    title="LM-30M on FineWeb-Edu",
    steps=18_258,
    grids={
        **SHARED_GRIDS,
        ADAMW.name: Grid(
            log_uniform(3e-4, 3e-2),
            (0.0, 0.1),
            "ours: a decade below and above the public code's 3e-3, decay 0",
        ),
        "adamw": Grid(log_uniform(3e-4, 3e-2), (0.0, 0.1), "ours: the same with betas 0.9 and 0.95"),
    },
    figures=(
        Figure("celo2", "3.812", "arXiv 2602.19142, ablation tables, second-hand; batch size not stated"),
        Figure(
            "celo2 without task augmentation", "4.417", "the same tables: what a worse meta-training costs"
        ),
        Figure("celo2 without normalization", "3.961", "the same tables"),
    ),
    measure="loss",
    need=need_tokens("finewebedu10B-gpt2", TRAIN_TOKENS),
    differences=(
        "Batches of 64 rows and the betas are those of the public code's AdamW runs; the Celo2 runs' were "
        "not published.",
        "Validation is on 16 batches (524,288 tokens), the same in every run, not on 20 million tokens.",
        *SHARED_DIFFERENCES,
    ),
    own=(ADAMW,),
)

if __name__ == "__main__":
    run(EXPERIMENT)
