"""ViT-S/16 on ImageNet-1k, 50,000 steps of 1,024 images: Celo2 against tuned AdamW and Muon.

python benchmarks/real_scale/vit_s16.py --help
"""

from __future__ import annotations

from pathlib import Path

from experiment import SHARED_DIFFERENCES, Experiment, run
from grids import SHARED_GRIDS, Grid, log_uniform
from plan import Need
from table import Figure

from celo2.tasks.vision.image_sets import IMAGENET_SIDE, load_imagenet

COUNTS = {"train": 1_281_167, "valid": 50_000}  # images of the official splits
IMAGE_BYTES = 3 * IMAGENET_SIDE**2
ABOUT_66 = "arXiv 2602.19142, second-hand and rounded: all three end level"


def check(folder: Path) -> None:
    """Raises an error if arrays are missing, damaged, or not the whole of ImageNet."""
    dataset = load_imagenet()
    for split, wanted in COUNTS.items():
        if (found := len(getattr(dataset, split)["label"])) < wanted:
            raise ValueError(
                f"{folder} has {found:,} images in {split}_image.npy; there should be {wanted:,}."
            )


EXPERIMENT = Experiment(
    task="vit-s16",
    title="ViT-S/16 on ImageNet-1k",
    steps=50_000,
    grids={
        **SHARED_GRIDS,
        "adamw": Grid(
            log_uniform(1e-4, 1e-2),
            (0.0, 0.1),
            "ours: a decade below and above 1e-3, the rate of Beyer et al., 2205.01580",
        ),
    },
    figures=(
        Figure("celo2", "about 66 %", f"{ABOUT_66}; it reached VeLO's final loss in about half of the steps"),
        Figure("adamw", "about 66 %", ABOUT_66),
        Figure("velo", "about 66 %", ABOUT_66),
    ),
    measure="accuracy",
    need=Need(
        "imagenet",
        "train_image.npy, train_label.npy, valid_image.npy and valid_label.npy: uint8 (N, 224, 224, 3) and "
        f"labels from 0 to 999, {COUNTS['train']:,} and {COUNTS['valid']:,} images, resized and cropped",
        num_bytes=IMAGE_BYTES * sum(COUNTS.values()),
        on_device=4 * 2 * COUNTS["train"],  # image indices and labels; the images stay on the host
        check_content=check,
    ),
    differences=(
        "The variant, the batch and the augmentation of the published run are not known. This is the plain "
        "variant of Beyer et al. with batches of 1,024 (40 epochs), no augmentation, mix-up or clipping, "
        "which overfits more: the accuracy is lower than with them whatever the optimizer.",
        "Validation is on 16 batches (16,384 images), the same in every run, not on all 50,000.",
        *SHARED_DIFFERENCES,
    ),
)

if __name__ == "__main__":
    run(EXPERIMENT)
