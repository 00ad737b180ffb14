"""Task families of a run: groups of pairs, and the data that they share.

Each family has a group of pairs. The pairs of a group share their shapes, so each group has its own inner
runs; everything else in an outer iteration has one row per pair across all groups, in their order. All
groups are unrolled in one program, and each device holds an equal part of each group.
`load_datasets` and `stack_data` provide the families' data as arrays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from celo2.meta.config import MetaConfig
from celo2.meta.inner.unroll import InnerState, Losses, Restart, init_pairs, unroll, unroll_full
from celo2.meta.pes import Theta
from celo2.tasks.base import Dataset
from celo2.tasks.families import FAMILIES
from celo2.tasks.families.base import Source, TaskData, stack_datasets, stack_texts
from celo2.tasks.language.stdlib_text import load_stdlib_text
from celo2.tasks.vision.datasets import load_image_sets


class Group(NamedTuple):
    """The pairs of one family.

    Attributes:
        family: Name of the family.
        source: Kind of data from which its batches are drawn.
        first: Index of its first pair.
        sets: Index of the data set of each of its pairs, in ascending order; zeros if there are no sets.
    """

    family: str
    source: Source
    first: int
    sets: tuple[int, ...]

    @property
    def num_pairs(self) -> int:
        """The number of pairs in the group."""
        return len(self.sets)


def make_groups(config: MetaConfig) -> tuple[Group, ...]:
    """Makes the groups of a recipe, in the order of its families.

    The pairs of image families are assigned to the image sets round-robin; each family continues where the
    previous one stopped.
    """
    groups: list[Group] = []
    first = dealt = 0
    for name, count in config.pairs_by_family.items():
        source = FAMILIES.find(name).source
        num_sets = len(config.sets_of(source)) or 1
        start = dealt if source == "images" else 0
        groups.append(Group(name, source, first, tuple(sorted((start + i) % num_sets for i in range(count)))))
        first += count
        dealt += count if source == "images" else 0
    return tuple(groups)


def check_devices(config: MetaConfig, num_devices: int) -> None:
    """Checks that the devices can share each family's pairs equally.

    Raises:
        ValueError: They cannot; the message names the family and the remedy.
    """
    for name, count in config.pairs_by_family.items():
        if count % num_devices:
            raise ValueError(
                f"{name!r} has {count} of the {config.num_pairs} pairs, which {num_devices} devices cannot "
                "share equally; choose tasks_per_set and the weights in families so that each family's "
                f"pairs are a multiple of {num_devices} (they are {config.pairs_by_family}), or use fewer "
                "devices."
            )


def _tasks(config: MetaConfig) -> Iterator[tuple[str, int]]:
    """Yields the name and number of pairs of each task, in the order of the pairs."""
    for group in make_groups(config):
        names = config.sets_of(group.source)
        for index in dict.fromkeys(group.sets):
            name = f"{group.family}/{names[index]}" if names else group.family
            yield name, group.sets.count(index)


def task_names(config: MetaConfig) -> tuple[str, ...]:
    """Returns `FAMILY/SET` for each family and the data sets it draws from, `FAMILY` if it has none."""
    return tuple(name for name, _ in _tasks(config))


def task_sizes(config: MetaConfig) -> tuple[int, ...]:
    """Returns the number of pairs of each task of `task_names`; a task's pairs are contiguous."""
    return tuple(count for _, count in _tasks(config))


def set_index(config: MetaConfig) -> tuple[Array, ...]:
    """Returns the data set index of each pair, `(pairs,)` int32 for each group."""
    return tuple(jnp.asarray(group.sets, jnp.int32) for group in make_groups(config))


def split_pairs(tree: Any, config: MetaConfig) -> tuple[Any, ...]:
    """Splits arrays with the leading axis `pairs` into one tree for each group."""
    groups = make_groups(config)
    if len(groups) == 1:
        return (tree,)

    def part(group: Group) -> Any:
        last = group.first + group.num_pairs
        return jax.tree.map(lambda array: array[group.first : last], tree)

    return tuple(part(group) for group in groups)


def join_losses(losses: Sequence[Losses]) -> Losses:
    """Concatenates the losses of all groups, `(steps, pairs)`."""
    if len(losses) == 1:
        return losses[0]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *losses)


def init_groups(pair_keys: Array, theta: Theta, config: MetaConfig) -> tuple[InnerState, ...]:
    """Applies `init_pairs` to each group."""
    parts = zip(make_groups(config), split_pairs(pair_keys, config), strict=True)
    return tuple(init_pairs(keys, theta, config, family=group.family) for group, keys in parts)


def unroll_groups(
    thetas: Sequence[Theta],
    states: Sequence[InnerState],
    pair_keys: Sequence[Array],
    sets: Sequence[Array],
    data: TaskData,
    restarts: Sequence[Restart] = (),
    *,
    config: MetaConfig,
) -> tuple[tuple[InnerState, ...], tuple[Losses, ...]]:
    """Applies `unroll`, or `unroll_full` if whole runs are trained, to each group.

    Args:
        thetas: The weights of each group's runs, see `unroll`; the arguments below are also per group.
        states: The current states of the runs.
        pair_keys: A key for each pair.
        sets: Data set of each pair.
        data: The data that the families draw from.
        restarts: Saved states from which runs continue, see `unroll`; none: new tasks for all that end.
        config: The recipe.
    """
    groups = make_groups(config)
    if config.trains_whole_runs:
        runs = [unroll_full] * len(groups)
    elif restarts:
        runs = [partial(unroll, restart=restart) for restart in restarts]
    else:
        runs = [unroll] * len(groups)
    done = [
        run(theta, state, keys, index, data.of(group.source), config, family=group.family)
        for run, group, theta, state, keys, index in zip(
            runs, groups, thetas, states, pair_keys, sets, strict=True
        )
    ]
    return tuple(state for state, _ in done), tuple(losses for _, losses in done)


TEXT_ROW = 64  # bytes; rows only split the text, since a batch can begin anywhere in it
TEXT_BYTES = 2_000_000


def load_datasets(config: MetaConfig) -> dict[str, Dataset]:
    """Loads the data sets named by `config.sets_of`; errors are those of their loaders."""
    sources = {FAMILIES.find(name).source for name in config.pairs_by_family}
    datasets = load_image_sets(config.datasets) if "images" in sources else {}
    if "text" in sources:
        (name,) = config.sets_of("text")
        datasets[name] = load_stdlib_text(TEXT_ROW, max_bytes=TEXT_BYTES)
    return datasets


def stack_data(datasets: Mapping[str, Dataset], config: MetaConfig) -> TaskData:
    """Stacks the data sets of `load_datasets` into arrays, with the splits that the recipe needs."""
    images, text = (
        [datasets[name] for name in config.sets_of(source) if name in datasets]
        for source in ("images", "text")
    )
    return TaskData(
        images=stack_datasets(images, splits=config.splits) if images else None,
        text=stack_texts(text, splits=config.splits) if text else None,
    )


def describe(datasets: Mapping[str, Dataset]) -> str:
    """Describes the data sets, for the provenance of a weight file."""
    parts = []
    for dataset in datasets.values():
        is_text = "text" in dataset.train
        amount = f"{dataset.train['text'].size} bytes" if is_text else f"{dataset.size('train')} images"
        parts.append(f"{dataset.name} ({amount})")
    return ", ".join(parts) or "none"
