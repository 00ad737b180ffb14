"""GPT-2 124M on FineWeb, 4,712 steps of 512 × 1,024 tokens: Celo2 against tuned AdamW and Muon.

python benchmarks/real_scale/gpt2_124m.py --help
"""

from __future__ import annotations

from experiment import SHARED_DIFFERENCES, Experiment, run
from grids import SHARED_GRIDS, Grid, log_uniform
from table import Figure
from token_shards import need_tokens

TRAIN_TOKENS = 2_470_640_640  # 20 per parameter, of 123.5 M
FIGURE_7 = "arXiv 2602.19142, figure 7, second-hand"
ELO = (
    "arXiv 2607.06772, second-hand: best validation loss of another GPT-2 124M run on 2.5 billion tokens of "
    "FineWeb; comparable with that text's other figures only"
)

EXPERIMENT = Experiment(
    task="gpt2-124m",
    title="GPT-2 124M on FineWeb",
    steps=4_712,
    grids={
        **SHARED_GRIDS,
        "adamw": Grid(
            log_uniform(1.5e-4, 2e-2),
            (0.0, 0.1),
            "the public code's range; its best was 4.8e-3 with decay 0.1",
        ),
    },
    figures=(
        Figure("celo2", "3.35588 or 3.36785", f"{FIGURE_7}, which does not say what the two differ in"),
        Figure("muon", "3.35636", FIGURE_7),
        Figure("adamw", "3.181 (ELO's run)", ELO),
        Figure("celo2", "3.179 (ELO's run)", ELO),
        Figure("muon", "3.138 (ELO's run)", ELO),
        Figure("ELO-Celo2", "3.117 (ELO's run)", f"{ELO}; Celo2's network, meta-trained otherwise"),
    ),
    measure="loss",
    need=need_tokens("fineweb10B-gpt2", TRAIN_TOKENS),
    differences=(
        "Batches of 512 rows are those of the public code's AdamW runs; the Celo2 runs' were not published.",
        "A batch is computed 16 rows at a time and gradients are averaged: the same numbers up to rounding.",
        "Validation is on 16 batches (8,388,608 tokens), the same in every run, not on 20 million tokens.",
        *SHARED_DIFFERENCES,
    ),
)

if __name__ == "__main__":
    run(EXPERIMENT)
