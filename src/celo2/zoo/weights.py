"""Weight files of the optimizers in the zoo: reading, checking, saving, and matching them to presets.

Two formats are read, as for Celo2 itself, neither by pickle: safetensors of this package, whose metadata give
the optimizer, its options and the provenance; and the public implementations' `theta.state`, which holds
the arrays alone, so that the optimizer is identified by their names and shapes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from celo2._utils.files import write_atomic
from celo2.config import nearest_name
from celo2.weights.checkpoint import check_array
from celo2.weights.digests import DIGEST, Integrity, check_digest
from celo2.weights.safetensors_format import (
    ZOO_FORMAT,
    check_fields,
    decode_arrays,
    encode_arrays,
    parse_arrays,
)
from celo2.weights.sources import OURS, UPSTREAM, WeightFile, find_file
from celo2.weights.theta_state import decode_theta, encode_tree
from celo2.zoo.names import (
    as_tree,
    check_fit,
    find_kind,
    flatten,
    identify,
    read_shapes,
)
from celo2.zoo.specs import MEMBERS, PRESETS, MemberConfig

MAX_BYTES = 1 << 26  # of a weight file; the largest preset takes 9 MB
_VERSION = "1"  # of the metadata
_FIELDS = frozenset({"format", "optimizer", "options", "provenance", "version", DIGEST})


@dataclasses.dataclass(frozen=True, eq=False)
class ZooWeights:
    """Trained weights of one optimizer of the zoo, checked when built and read-only from then on.

    Attributes:
        arrays: The arrays of `config.weight_shapes()` by name, float32, finite.
        config: The options; their type identifies the optimizer.
        provenance: Free text by field: source, command, data, …
        stated: The names of the options that the arrays, the file or the caller fixed; the others are
            assumed to have their defaults.

    Raises:
        ValueError: An array is missing, unexpected, misshapen, not float32 or not finite.
    """

    arrays: Mapping[str, np.ndarray] = dataclasses.field(repr=False)
    config: MemberConfig
    provenance: Mapping[str, str] = dataclasses.field(default_factory=dict)
    stated: frozenset[str] = dataclasses.field(default=frozenset(), repr=False)

    def __post_init__(self) -> None:
        """Checks the arrays and copies them in the order of the config."""
        shapes = read_shapes(self.arrays)
        check_fit(shapes, self.config)
        checked = {name: check_array(name, self.arrays[name]) for name in self.config.weight_shapes()}
        object.__setattr__(self, "arrays", MappingProxyType(checked))
        object.__setattr__(self, "provenance", MappingProxyType(dict(self.provenance)))
        object.__setattr__(self, "stated", self.stated.union(self.config.sizes_of(shapes)))

    def __reduce__(self) -> tuple[Any, ...]:
        """Supports `copy.deepcopy` and `pickle`, which refuse read-only mappings."""
        return type(self), (dict(self.arrays), self.config, dict(self.provenance), self.stated)

    @property
    def kind(self) -> str:
        """The optimizer's name, one of `MEMBERS`."""
        return self.config.kind


def load_weights(source: str | os.PathLike[str], **options: Any) -> ZooWeights:
    """Loads weights of an optimizer of the zoo.

    Args:
        source: A path to safetensors of this package, to an upstream `theta.state`, or to a folder that
            holds one; otherwise a hub repository `"owner/name"` (needs the `hub` extra).
        **options: Options of the optimizer that the file does not state, such as `ff_mult=100`.

    Raises:
        TypeError: The optimizer has no such option.
        ValueError: The file is not a weight file of the zoo, is damaged, or states other options.
        FileNotFoundError, ConnectionError, ImportError: As `celo2.load_checkpoint`.
    """
    return decode_weights(find_file(source, MAX_BYTES), **options)


def decode_weights(file: WeightFile, **options: Any) -> ZooWeights:
    """Decodes a weight file that has been read; options and errors are those of `load_weights`."""
    try:
        weights = _decode_ours(file.data) if file.name.endswith(OURS) else _decode_upstream(file)
        weights = _with_options(weights, options)
    except ValueError as error:
        raise ValueError(f"{file.name}: {error}") from error
    if file.hub is None:
        return weights
    return dataclasses.replace(weights, provenance={**weights.provenance, "hub": file.hub})


def is_zoo_file(file: WeightFile) -> bool:
    """Returns whether a file holds weights of the zoo; their integrity is not checked."""
    try:
        if file.name.endswith(OURS):
            return parse_arrays(file.data)[1].get("format") == ZOO_FORMAT
        return identify(decode_theta(file.data)) is not None
    except ValueError:
        return False


def read_integrity(file: WeightFile) -> Integrity:
    """Checks the digest of a weight file, of the zoo or of Celo2 itself; see `celo2.weights.digests`.

    Raises:
        ValueError: It is not a weight file, or its content does not match the digest it carries.
    """
    if file.name.endswith(OURS):
        return check_digest(*parse_arrays(file.data))
    return check_digest(flatten(decode_theta(file.data)), {})


def weights_from_tree(tree: Mapping[str, Any], **options: Any) -> ZooWeights:
    """Builds weights from float32 arrays in memory, nested as in an upstream file or by name.

    Raises:
        TypeError: The optimizer has no such option.
        ValueError: The arrays belong to no optimizer of the zoo, or are incomplete.
    """
    arrays = flatten(tree)
    shapes = read_shapes(arrays)
    kind = find_kind(shapes)
    if kind is None:
        raise ValueError(
            f"not weights of {', '.join(MEMBERS)}: found {len(shapes)} arrays, "
            f"{', '.join(f'{name:.40}' for name in list(shapes)[:4]) or 'none'} …."
        )
    config = MEMBERS[kind](**MEMBERS[kind].sizes_of(shapes))
    return _with_options(ZooWeights(arrays, config), options)


def save_weights(path: str | os.PathLike[str], weights: ZooWeights) -> None:
    """Writes a weight file atomically.

    Args:
        path: `*.safetensors` for a file with optimizer, stated options, provenance and digest; `*.state` for
            the public implementations' format, which carries the arrays alone.
        weights: The weights to write.

    Raises:
        ValueError: The path has another suffix.
    """
    path = Path(path)
    if path.suffix == OURS:
        metadata = {
            "format": ZOO_FORMAT,
            "optimizer": weights.kind,
            "options": json.dumps({n: getattr(weights.config, n) for n in sorted(weights.stated)}),
            "provenance": json.dumps(dict(weights.provenance), sort_keys=True),
            "version": _VERSION,
        }
        data = encode_arrays(weights.arrays, metadata)
    elif path.suffix == UPSTREAM:
        data = encode_tree(as_tree(weights.arrays))
    else:
        raise ValueError(f"{path} must end in {OURS} or {UPSTREAM} (upstream's format).")
    write_atomic(path, data)


def _decode_upstream(file: WeightFile) -> ZooWeights:
    weights = weights_from_tree(decode_theta(file.data))
    origin = {"source": Path(file.name).name, "source_sha256": hashlib.sha256(file.data).hexdigest()}
    return dataclasses.replace(weights, provenance=origin)


def _decode_ours(data: bytes) -> ZooWeights:
    arrays, metadata = decode_arrays(data)
    if metadata.get("format") != ZOO_FORMAT:
        found = repr(metadata["format"])[:40] if "format" in metadata else "none"
        raise ValueError(
            f"not weights of {', '.join(MEMBERS)}: expected the metadata format={ZOO_FORMAT!r}, found "
            f"{found}."
        )
    kind, version = metadata.get("optimizer", ""), metadata.get("version", "")
    if version != _VERSION:
        raise ValueError(f"expected metadata of version {_VERSION}, found {version!r:.40}; upgrade celo2.")
    check_fields(metadata, _FIELDS)
    if kind not in MEMBERS:
        raise ValueError(f"weights of {kind!r:.40}, expected one of {', '.join(MEMBERS)}.")
    options, provenance = (_read_object(metadata, name) for name in ("options", "provenance"))
    if not all(isinstance(text, str) for text in provenance.values()):
        raise ValueError("provenance must map text to text.")
    return ZooWeights(arrays, _make_config(kind, options), provenance, frozenset(options))


def _read_object(metadata: Mapping[str, str], name: str) -> dict[str, Any]:
    try:
        value = json.loads(metadata.get(name, ""))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"bad metadata, {name}: {error!s:.200}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be a JSON object, found {type(value).__name__}.")
    return value


def _make_config(kind: str, options: Mapping[str, Any]) -> MemberConfig:
    try:
        return MEMBERS[kind](**options)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"bad options of {kind}: {error!s:.200}") from error


def _with_options(weights: ZooWeights, options: Mapping[str, Any]) -> ZooWeights:
    """Returns the weights with a caller's options, of which Celo's phase may always be chosen."""
    valid = [field.name for field in dataclasses.fields(weights.config)]
    for name, value in options.items():
        if name not in valid:
            raise TypeError(
                f"{weights.kind} has no option {name!r}{nearest_name(name, valid)} It has "
                f"{', '.join(valid) or 'none'}."
            )
        own = getattr(weights.config, name)
        if name in weights.stated and name != "phase" and value != own:
            raise ValueError(f"these {weights.kind} weights have {name}={own!r}, asked for {value!r}.")
    config = dataclasses.replace(weights.config, **options)
    return dataclasses.replace(weights, config=config, stated=weights.stated.union(options))


_ANY_SIZE = (
    "celo",
    "celo_phase1",
    "celo_adam",
    "rnn_mlp",
    "nn_adam",
    "velo",
)  # presets that take the sizes of the weights


def find_preset(name: str) -> MemberConfig:
    """Returns the published options of a preset.

    Raises:
        ValueError: The name is unknown; the message suggests the nearest.
    """
    if name not in PRESETS:
        raise ValueError(
            f"unknown optimizer {name!r}{nearest_name(name, PRESETS)} There are {', '.join(PRESETS)}."
        )
    return PRESETS[name]


def sized_preset(name: str, arrays: Mapping[str, Any], **options: Any) -> MemberConfig:
    """Returns a preset with the sizes of these arrays, unless its sizes are fixed, and a caller's options.

    Raises:
        ValueError: The name is unknown, or an option is out of its range.
    """
    preset = find_preset(name)
    sizes = preset.sizes_of(read_shapes(arrays)) if name in _ANY_SIZE else {}
    return dataclasses.replace(preset, **{**sizes, **options})


def check_stated(name: str, config: MemberConfig, weights: ZooWeights) -> None:
    """Checks that weights belong to this optimizer and options; the phases of Celo share weights.

    Raises:
        ValueError: They do not; the message states the options under which they can be used.
    """
    if weights.kind != config.kind:
        raise ValueError(f"these are weights of {weights.kind!r}, asked for {name!r}.")
    for option in sorted(weights.stated - {"phase"}):
        own, asked = getattr(weights.config, option), getattr(config, option)
        if own != asked:
            raise ValueError(
                f"these {weights.kind} weights have {option}={own!r}, {name!r} has {asked!r}; say "
                f"{option}={own!r}, or take a preset that has it."
            )


def fitting_presets(weights: ZooWeights) -> list[str]:
    """Returns the names under which `make` takes these weights without further options."""
    return [name for name in PRESETS if _fits(name, weights)]


def _fits(name: str, weights: ZooWeights) -> bool:
    try:
        check_stated(name, sized_preset(name, weights.arrays), weights)
    except ValueError:
        return False
    return True
