"""The data sets of a recipe: only those that its families draw from."""

from __future__ import annotations

from collections.abc import Mapping

from celo2.meta.config import MetaConfig
from celo2.tasks.base import Dataset
from celo2.tasks.datasets import load_image_sets
from celo2.tasks.families import FAMILIES
from celo2.tasks.family import TaskData, stack_datasets, stack_texts
from celo2.tasks.text import load_stdlib_text

__all__ = ["describe", "load_datasets", "stack_data"]

TEXT_ROW = 64  # bytes; rows only cut the text, since a batch begins anywhere in it
TEXT_BYTES = 2_000_000


def load_datasets(config: MetaConfig) -> dict[str, Dataset]:
    """The sets by the names in `config.sets_of`; the errors are those of their loaders."""
    sources = {FAMILIES[name].source for name in config.pairs_by_family}
    datasets = load_image_sets(config.datasets) if "images" in sources else {}
    if "text" in sources:
        (name,) = config.sets_of("text")
        datasets[name] = load_stdlib_text(TEXT_ROW, max_bytes=TEXT_BYTES)
    return datasets


def stack_data(datasets: Mapping[str, Dataset], config: MetaConfig) -> TaskData:
    """What `load_datasets` found, as arrays, with the splits that the recipe needs."""
    images, text = (
        [datasets[name] for name in config.sets_of(source) if name in datasets]
        for source in ("images", "text")
    )
    return TaskData(
        images=stack_datasets(images, splits=config.splits) if images else None,
        text=stack_texts(text, splits=config.splits) if text else None,
    )


def describe(datasets: Mapping[str, Dataset]) -> str:
    """What a weight file says about the data that it was made from."""
    parts = []
    for dataset in datasets.values():
        is_text = "text" in dataset.train
        amount = f"{dataset.train['text'].size} bytes" if is_text else f"{dataset.size('train')} images"
        parts.append(f"{dataset.name} ({amount})")
    return ", ".join(parts) or "none"
