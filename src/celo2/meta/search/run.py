"""The search loop: gets candidates from CMA-ES, measures them by short runs, and records everything.

Source: N. Hansen, "The CMA evolution strategy: a tutorial" (arXiv 1604.00772), by the library `cmaes`. Each
generation trains on some of the set's tasks, in turn, with seeds that no earlier generation used. All its
candidates have the same tasks, seeds and batches, as do the start and the distribution's mean, which are
trained with them.

OUT/config.json          the settings that determine the result
OUT/generations.jsonl    one line per generation: tasks, candidates' values, the mean, its log ratios
OUT/weights/             the mean as finished weights, at intervals, and its average over the last third of
                         the generations, which is less noisy than single ones

Candidates depend only on the seed and the values of earlier generations, so the record is also the
checkpoint: resuming asks for them again, tells the recorded values, and continues.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Self, get_args

import numpy as np
from cmaes import CMA
from tyro.conf import Suppress as RecipeOnly  # an option without a flag

from celo2 import __version__
from celo2._utils.checks import check_seeds
from celo2._utils.files import read_lines, read_object, write_atomic
from celo2._utils.locks import check_owner, lock_folder
from celo2.constants import ADAMW_LR_SCALE
from celo2.gradient_range import FIELD, QUANTILES, format_range
from celo2.meta.parsing import load_config, parse_fields
from celo2.meta.search import mixture
from celo2.meta.search.objective import Objective, soft_maximum
from celo2.meta.task_sets import TaskSet, load_task_set
from celo2.weights.checkpoint import save_weights

RECORD, CONFIG = "generations.jsonl", "config.json"
SearchVariant = Literal["celo2", "celo2-base"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Settings that determine the result of a search, except for its length.

    Attributes:
        variant: "celo2" (Newton–Schulz on matrices, AdamW on vectors) or "celo2-base".
        task_set: Declared set of tasks, a name or a TOML file.
        tasks_per_generation: Tasks that each generation trains on, in turn; 0: the whole set.
        population: Candidates per generation, at least 4.
        spread: Standard deviation of the first candidates; the weights of the start's channels are a half.
        seeds: Runs per task, rate and candidate.
        bends: Whether two more numbers bend the weighted sum where it is large.
        revives: Whether four more numbers revive dead units by pushing rows and columns without gradients.
        only_terms: Whether only the numbers of `bends` and `revives` are searched; the weights and decays
            stay those of `start`.
        adamw_lr_scale: Learning rate of AdamW's share divided by that of the rule; the "plus" preset has 5.
        eigenbasis_every: Steps between updates of the eigenbasis in which all rules, including the start,
            run; 10 with a share of 5 is the "eigenbasis" preset. 0: no basis.
        gradient_scales: Smallest and largest factor by which gradients are multiplied, drawn for each task
            and seed, so that the rule does not depend on their scale.
        stored_kernels: Whether convolution kernels are used as stored instead of as the single matrix that
            the public optimizers find in each. The shipped weights were found that way.
        start: Numbers to start from, such as the vector in the last line of an earlier record; the numbers
            of `bends` and `revives` may be missing, for 0. None: the Adam-like start.
        seed: Seed of the candidates, the tasks' order and the runs.
        set_digest: `TaskSet.digest` that the task set must have; empty, as before a search: any.

    Raises:
        ValueError: A number is out of its range.
    """

    variant: SearchVariant = "celo2"
    task_set: str = "searching"
    tasks_per_generation: int = 4
    population: int = 12
    spread: float = 0.08
    seeds: int = 1
    bends: bool = False
    revives: bool = False
    only_terms: bool = False
    adamw_lr_scale: float = ADAMW_LR_SCALE
    eigenbasis_every: int = 0
    gradient_scales: tuple[float, float] = (1.0, 1.0)
    stored_kernels: RecipeOnly[bool] = False
    start: tuple[float, ...] = ()
    seed: int = 0
    set_digest: RecipeOnly[str] = ""

    def __post_init__(self) -> None:
        """Checks the numbers."""
        missing = 2 * self.bends + 4 * self.revives if len(self.start) == mixture.NUM_PLAIN else 0
        object.__setattr__(self, "start", (*map(float, self.start), *(0.0,) * missing))
        object.__setattr__(self, "gradient_scales", tuple(map(float, self.gradient_scales)))
        if self.variant not in get_args(SearchVariant):
            raise ValueError(
                f"variant must be one of {get_args(SearchVariant)}, got {self.variant!r}; predecessors are "
                "trained by celo2 meta-train."
            )
        if self.population < 4 or self.seeds < 1 or self.tasks_per_generation < 0 or not self.spread > 0:
            raise ValueError(
                "expected population ≥ 4, seeds ≥ 1, tasks_per_generation ≥ 0 and spread > 0, got "
                f"{self.population}, {self.seeds}, {self.tasks_per_generation}, {self.spread}."
            )
        check_seeds(self.seed)
        scales = self.gradient_scales
        if len(scales) != 2 or not 0 < scales[0] <= scales[1] < math.inf:
            raise ValueError(f"gradient_scales must be two finite numbers 0 < low ≤ high, got {scales}.")
        if not 0 < self.adamw_lr_scale < math.inf:
            raise ValueError(f"adamw_lr_scale must be finite and positive, got {self.adamw_lr_scale}.")
        if self.eigenbasis_every < 0:
            raise ValueError(f"eigenbasis_every must be 0 or a number of steps, got {self.eigenbasis_every}.")
        if self.only_terms and not (self.bends or self.revives):
            raise ValueError("only_terms leaves nothing to search without bends or revives.")
        if self.revives and self.eigenbasis_every:
            raise ValueError(
                "revives pushes the weights of units, which are not the rows or columns of an eigenbasis; "
                "leave out revives or eigenbasis_every."
            )
        if self.start and not mixture.is_vector(np.asarray(self.start), self.bends, self.revives):
            wanted = len(self.adam_vector)
            raise ValueError(f"start must be {wanted} finite numbers, got {len(self.start)}: {self.start}.")

    @property
    def adam_vector(self) -> np.ndarray:
        """The vector of the Adam-like start, to which losses are compared."""
        return mixture.to_vector(self.bends, self.revives)

    def fill_in(self, found: np.ndarray) -> np.ndarray:
        """Returns a whole vector: the numbers kept from the start, then those that are searched."""
        return np.concatenate([self.start_vector[: len(self.adam_vector) - len(found)], found])

    @property
    def start_vector(self) -> np.ndarray:
        """The vector at which the search begins."""
        return np.asarray(self.start) if self.start else self.adam_vector

    def to_json(self) -> str:
        """Returns the settings as a JSON object."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Parses the output of `to_json`; missing settings take their defaults.

        Raises:
            ValueError: The text is not a JSON object, or has an unknown name, or a value of the wrong
                type or range.
        """
        return cls(**parse_fields(cls, text, "the config of a search"))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Reads the `config.json` of a search; errors are those of `parsing.load_config`."""
        return load_config(cls, path)


@dataclasses.dataclass(frozen=True)
class Generation:
    """The result of one generation, a line of the record.

    Attributes:
        generation: Index of the generation, from 0.
        tasks: Names of the tasks it trained on.
        values: Values of the candidates, soft maxima of their log ratios over units; lower is better.
        mean: Log ratio of the distribution's mean to the start, by task.
        vector: The measured mean of the distribution.
        spread: Mean standard deviation of the distribution's coordinates.
        seconds: Duration.
    """

    generation: int
    tasks: tuple[str, ...]
    values: tuple[float, ...]
    mean: dict[str, float]
    vector: tuple[float, ...]
    spread: float
    seconds: float


def search(
    config: SearchConfig,
    out: Path,
    *,
    generations: int,
    save_every: int = 5,
    on_generation: Callable[[Generation], Any] | None = None,
) -> np.ndarray:
    """Runs or resumes a search up to a number of generations.

    Args:
        config: The settings that determine the result.
        out: Folder of the search; created, or one that contains a search with the same settings.
        generations: Total number of generations.
        save_every: Generations between weight files.
        on_generation: Called with each new line of the record.

    Returns:
        The mean of the distributions of the last third of the generations, a vector of `to_mixture`.

    Raises:
        ValueError: The folder's search has different settings, the task set's digest differs from
            `config.set_digest`, or a run's seed would be out of range.
        OSError: The folder cannot be written, or another process uses it.
    """
    task_set = load_task_set(config.task_set)
    if config.set_digest not in ("", task_set.digest):
        raise ValueError(
            f"the task set {config.task_set!r} has changed since this search: expected the digest "
            f"{config.set_digest}, got {task_set.digest}. Put the set back, or begin another search."
        )
    config = dataclasses.replace(config, set_digest=task_set.digest)
    check_seeds(_first_seed(config, task_set, 0), config.seeds * max(1, generations))
    objective = Objective(
        task_set,
        config.variant,
        adamw_lr_scale=config.adamw_lr_scale,
        eigenbasis_every=config.eigenbasis_every,
        gradient_scales=config.gradient_scales,
        stored_kernels=config.stored_kernels,
    )
    check_owner(out, "celo2 search")
    (out / "weights").mkdir(parents=True, exist_ok=True)
    with lock_folder(out, "celo2 search"):
        return _search(config, out, objective, generations, save_every, on_generation)


def _search(
    config: SearchConfig,
    out: Path,
    objective: Objective,
    generations: int,
    save_every: int,
    on_generation: Callable[[Generation], Any] | None,
) -> np.ndarray:
    """Runs `search` in a folder that no other process writes to."""
    records = _open(config, out)
    strategy = CMA(
        mean=config.start_vector[mixture.NUM_PLAIN if config.only_terms else 0 :],
        sigma=config.spread,
        population_size=config.population,
        seed=config.seed,
    )
    means: list[np.ndarray] = []
    for number in range(generations):
        candidates = [strategy.ask() for _ in range(config.population)]
        if number < len(records):
            values = records[number]["values"]
        else:
            done = _measure(objective, config, number, candidates, strategy)
            values = done.values
            with (out / RECORD).open("a") as file:
                file.write(json.dumps(dataclasses.asdict(done)) + "\n")
            if on_generation:
                on_generation(done)
        strategy.tell(list(zip(candidates, values, strict=True)))
        means.append(strategy.mean.copy())  # a copy: the strategy changes it in place
        label = f"{number + 1:06d}"
        if (number + 1) % save_every == 0 and not _weights_path(config, out, label).exists():
            _save(config.fill_in(strategy.mean), config, out, label)
    average = config.fill_in(np.mean(means[-math.ceil(generations / 3) :], axis=0))
    _save(config.fill_in(strategy.mean), config, out, f"{generations:06d}")
    met = np.quantile(objective.sample_gradient_rms(average, objective.task_set.first_seed), QUANTILES)
    _save(average, config, out, f"{generations:06d}-averaged", {FIELD: format_range(*met)})
    return average


def _open(config: SearchConfig, out: Path) -> list[dict[str, Any]]:
    """Checks the folder and returns the record without a torn last line."""
    path = out / CONFIG
    if path.exists():
        wanted = json.loads(config.to_json())
        before = {"stored_kernels": True, "set_digest": config.set_digest}  # missing in older folders
        known = {**json.loads(SearchConfig().to_json()), **before, **read_object(path)}
        differing = [name for name, value in wanted.items() if known[name] != value]
        if differing:
            raise ValueError(
                f"{out} holds a search with other settings ({', '.join(differing)}); name another folder, or "
                "give the same ones."
            )
    else:
        write_atomic(path, config.to_json().encode())
    records, odd = read_lines(out / RECORD, _is_record)
    if odd or [record["generation"] for record in records] != list(range(len(records))):
        where = f"line {odd[0]}" if odd else "the order of its generations"
        raise ValueError(
            f"{out / RECORD}: {where} is not as a search writes it, and what follows depends on it; put back "
            "a copy, or begin with another folder."
        )
    if records:  # without the line that a killed run left torn
        lines = "".join(json.dumps(record) + "\n" for record in records)
        write_atomic(out / RECORD, lines.encode())
    return records


def _is_record(record: dict[str, Any]) -> bool:
    values = record.get("values")
    return isinstance(values, list) and isinstance(record.get("generation"), int)


def _tasks_of(config: SearchConfig, names: tuple[str, ...], number: int) -> tuple[str, ...]:
    """Selects the tasks of a generation: all in random order, a few at a time, then in another order."""
    size = config.tasks_per_generation or len(names)
    per_round = -(-len(names) // size)
    order = np.random.default_rng([config.seed, number // per_round]).permutation(len(names))
    place = number % per_round
    return tuple(names[i] for i in sorted(order[place * size : (place + 1) * size]))


def _first_seed(config: SearchConfig, task_set: TaskSet, number: int) -> int:
    """Returns the first seed of a generation's runs."""
    return task_set.first_seed + config.seeds * (number + 100_000 * config.seed)


def _measure(
    objective: Objective, config: SearchConfig, number: int, candidates: list[np.ndarray], strategy: CMA
) -> Generation:
    begin = time.monotonic()
    task_set = objective.task_set
    names = _tasks_of(config, tuple(entry.name for entry in task_set.tasks), number)
    chosen = task_set.select(names)
    points = [config.fill_in(point) for point in (strategy.mean, *candidates)]
    vectors = np.stack([config.adam_vector, *points])
    first = _first_seed(config, task_set, number)
    seeds = range(first, first + config.seeds)
    losses = np.stack([objective.measure(name, vectors, seeds) for name in names], axis=-1)
    ratios = losses - losses[0]
    units = np.asarray([entry.unit for entry in chosen.tasks])
    values = soft_maximum(ratios[2:] / units, chosen.kind_weights)
    return Generation(
        number,
        names,
        tuple(values.tolist()),
        dict(zip(names, ratios[1].round(5).tolist(), strict=True)),
        tuple(points[0].tolist()),
        float(np.std([candidate - strategy.mean for candidate in candidates])),
        round(time.monotonic() - begin, 2),
    )


def _save(
    vector: np.ndarray,
    config: SearchConfig,
    out: Path,
    label: str,
    facts: Mapping[str, str] = MappingProxyType({}),
) -> None:
    provenance = {
        "made_by": f"celo2 {__version__}",
        "command": f"celo2 search --variant {config.variant}, generation {label}",
        "recipe": " ".join(config.to_json().split()),
        "mixture": mixture.describe(vector),
        "seed": str(config.seed),
        **facts,
    }
    weights = mixture.make_weights(vector, config.variant, provenance)
    save_weights(_weights_path(config, out, label), weights)


def _weights_path(config: SearchConfig, out: Path, label: str) -> Path:
    return out / "weights" / f"{config.variant}-{label}.safetensors"
