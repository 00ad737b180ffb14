"""The rule's weights: NumPy arrays with their training options and provenance.

Two formats are read, neither by pickle, from disk or from the Hugging Face hub: safetensors of this package,
which carry everything, and the public implementation's `theta.state`, which carries the arrays alone. Only
float32 is accepted: other dtypes are refused, not converted. Files of this package carry the digest of their
content, and are refused if it does not match.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from celo2._utils.files import write_atomic
from celo2.config import CONTRACT_VERSION, RuleConfig
from celo2.weights.digests import check_digest
from celo2.weights.safetensors_format import (
    Contents,
    check_version,
    decode_safetensors,
    encode_safetensors,
    parse_arrays,
)
from celo2.weights.schema import check_fit, flat_arrays, read_shapes, read_sizes
from celo2.weights.sources import (
    OURS,
    SHIPPED,
    UPSTREAM,
    WeightFile,
    fetch_file,
    find_file,
)
from celo2.weights.theta_state import decode_theta, encode_theta

DEPLOYMENT_OPTIONS = frozenset({"rmsmult", "ns_coeffs", "ns_iters", "ns_eps"})  # may differ from training
MAX_BYTES = 1 << 20  # of a weight file; the default network takes 1.4 kB


@dataclasses.dataclass(frozen=True, eq=False)
class Weights:
    """Trained weights of the rule, checked when built and read-only from then on.

    Attributes:
        arrays: The arrays of `config.weight_shapes()` by name, float32, finite.
        config: The options; those not in `stated` are assumed to have the reference's defaults.
        provenance: Free text by field: source, command, data, seed, outer_steps, date, …
        contract_version: The version of the feature table that the arrays belong to.
        stated: The names of the options that the file or the caller fixed; all of them by default.

    Raises:
        ValueError: An array is missing, unexpected, misshapen, not float32 or not finite, or the contract
            version is unknown to this release.

    Example:
        >>> shapes = RuleConfig().weight_shapes()
        >>> Weights({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}).config.variant
        'celo2'
    """

    arrays: Mapping[str, np.ndarray] = dataclasses.field(repr=False)
    config: RuleConfig = dataclasses.field(default_factory=RuleConfig)
    provenance: Mapping[str, str] = dataclasses.field(default_factory=dict)
    contract_version: int = CONTRACT_VERSION
    stated: frozenset[str] = dataclasses.field(default=frozenset(RuleConfig.option_names()), repr=False)

    def __post_init__(self) -> None:
        """Checks every field and copies the arrays in the order of the network."""
        check_version(self.contract_version)
        RuleConfig.check_option_names(self.stated)
        for field, text in self.provenance.items():
            if not isinstance(field, str) or not isinstance(text, str):
                raise ValueError(f"provenance must map text to text, got {field!r:.80}: {text!r:.80}.")
        arrays = flat_arrays(self.arrays)
        check_fit(read_shapes(arrays), self.config)
        checked = {name: check_array(name, arrays[name]) for name in self.config.weight_shapes()}
        object.__setattr__(self, "arrays", MappingProxyType(checked))
        object.__setattr__(self, "provenance", MappingProxyType(dict(self.provenance)))

    def __reduce__(self) -> tuple[Any, ...]:
        """Supports `copy.deepcopy` and `pickle`, which refuse read-only mappings."""
        arrays, provenance = dict(self.arrays), dict(self.provenance)
        return type(self), (arrays, self.config, provenance, self.contract_version, self.stated)

    def resolve(self, **config: Any) -> RuleConfig:
        """Returns the options to run these weights with: their own, overridden by the caller's where allowed.

        Args:
            **config: Options of the rule. Those in `DEPLOYMENT_OPTIONS` may always be chosen; options that
                define the trained weights must agree with the stated ones.

        Raises:
            TypeError: An option is unknown.
            ValueError: The options are of another variant, or the arrays do not fit them.
        """
        RuleConfig.check_option_names(config)
        fixed = self.stated - DEPLOYMENT_OPTIONS
        wrong = [
            name for name in config if name in fixed and not _same(config[name], getattr(self.config, name))
        ]
        if wrong:
            raise ValueError(self._contradiction(wrong, config))
        resolved = self.config.replace(**config)
        check_fit(read_shapes(self.arrays), resolved)
        return resolved

    def _contradiction(self, wrong: Iterable[str], config: Mapping[str, Any]) -> str:
        found = ", ".join(f"{name}={getattr(self.config, name)!r}" for name in wrong)
        asked = ", ".join(f"{name}={config[name]!r}" for name in wrong)
        remedy = "leave the option out, or load weights that were trained with it"
        if "orthogonalize" in wrong:
            remedy = f"use load_checkpoint({SHIPPED[0] if config['orthogonalize'] else SHIPPED[1]!r})"
        return (
            f"wrong variant: these {self.config.variant} weights have {found}, asked for {asked}; {remedy}."
        )


def compute_checksum(arrays: Mapping[str, np.ndarray], config: Any) -> str:
    """Returns the SHA-256 of a network's arrays and options: the same for equal weights in any file.

    Args:
        arrays: The arrays by name.
        config: The options, a frozen dataclass.
    """
    digest = hashlib.sha256(repr(config).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name}{array.shape}{array.dtype.str}".encode() + array.tobytes())
    return digest.hexdigest()


def load_checkpoint(source: str | os.PathLike[str], **config: Any) -> Weights:
    """Loads weights of the rule, by name, from a file, or from the Hugging Face hub.

    Args:
        source: `"celo2"` or `"celo2-base"` (shipped); a path to safetensors of this package, to an
            upstream `theta.state`, or to a folder that holds one; otherwise a hub repository
            `"owner/name"` (needs the `hub` extra). Local files take precedence.
        **config: Options of the rule that the file does not carry. Sizes are read from the arrays
            and checked, as are options that the file does carry.

    Returns:
        The weights, for `scale_by_celo2`.

    Raises:
        TypeError: An option is unknown.
        ValueError: The file is not a weight file, is damaged, or does not fit the options.
        FileNotFoundError: The source does not exist.
        ConnectionError: The hub cannot be reached.
        ImportError: The source is a hub repository and the `hub` extra is not installed.

    Example:
        `load_checkpoint("theta.state", orthogonalize=False)`
    """
    RuleConfig.check_option_names(config)
    return decode_weights(find_file(source, MAX_BYTES), **config)


def fetch_checkpoint(repo_id: str, **config: Any) -> Weights:
    """Loads weights from a Hugging Face repository, ignoring local files; see `load_checkpoint`."""
    RuleConfig.check_option_names(config)
    return decode_weights(fetch_file(repo_id, MAX_BYTES), **config)


def weights_from_tree(tree: Mapping[str, Any], **config: Any) -> Weights:
    """Builds weights from arrays in memory: `{"ff_mod_stack": {"~": {"w0__0": …}}}` or `{"w0__0": …}`.

    Args:
        tree: The arrays, float32.
        **config: Options of the rule; they and the sizes of the arrays become the stated options.

    Raises:
        TypeError: An option is unknown.
        ValueError: The arrays do not fit the options.
    """
    arrays, resolved = resolve_tree(tree, **config)
    stated = frozenset(config).union(read_sizes(read_shapes(arrays)))
    return Weights(arrays, resolved, stated=stated)


def resolve_tree(tree: Mapping[str, Any], **config: Any) -> tuple[dict[str, Any], RuleConfig]:
    """Returns the arrays of a tree by name, and the options with the sizes read from them.

    Only names and shapes are used, so the arrays may be traced. See `weights_from_tree`.
    """
    arrays = flat_arrays(tree)
    shapes = read_shapes(arrays)
    resolved = RuleConfig().replace(**{**read_sizes(shapes), **config})
    check_fit(shapes, resolved)
    return arrays, resolved


def resolve_theta(
    theta: Weights | Mapping[str, Any] | None, **config: Any
) -> tuple[dict[str, Any], RuleConfig]:
    """Returns the arrays by name and the options that a transform runs with.

    Args:
        theta: Weights; a tree of arrays, possibly traced; or None for the shipped weights:
            `"celo2"`, or `"celo2-base"` with `orthogonalize=False`.
        **config: Options of the rule; they must agree with those that the weights state.

    Raises:
        TypeError: An option is unknown, or theta has another type.
        ValueError: The weights do not fit the options; the message names those that differ.
    """
    RuleConfig.check_option_names(config)
    if theta is None:
        theta = load_checkpoint(SHIPPED[0] if config.get("orthogonalize", True) else SHIPPED[1])
    if isinstance(theta, Weights):
        return dict(theta.arrays), theta.resolve(**config)
    if isinstance(theta, Mapping):
        return resolve_tree(theta, **config)
    raise TypeError(
        f"theta must be Weights, a tree of arrays or None, got {type(theta).__name__}; "
        "load a file with celo2.load_checkpoint first."
    )


def save_weights(path: str | os.PathLike[str], weights: Weights) -> None:
    """Writes a weight file atomically.

    Args:
        path: `*.safetensors` for a file with options, provenance and digest, `*.state` for the
            public implementation's format, which carries the arrays alone.
        weights: The weights to write.

    Raises:
        ValueError: The path has another suffix, the provenance is too long, or the variant of weights for
            safetensors is unknown.
    """
    path = Path(path)
    if path.suffix == OURS:
        if "orthogonalize" not in weights.stated:
            raise ValueError(
                "these weights do not say which variant they are; load them with orthogonalize=True "
                "(Celo2) or orthogonalize=False (Celo2-base)."
            )
        contents = Contents(weights.arrays, weights.config, weights.provenance, weights.contract_version)
        data = encode_safetensors(contents)
    elif path.suffix == UPSTREAM:
        data = encode_theta(weights.arrays)
    else:
        raise ValueError(f"{path} must end in {OURS} or {UPSTREAM} (upstream's format).")
    if len(data) > MAX_BYTES:
        raise ValueError(f"{path} would have {len(data)} bytes, expected at most {MAX_BYTES}.")
    write_atomic(path, data)


def decode_weights(file: WeightFile, **config: Any) -> Weights:
    """Decodes a weight file that has been read; options and errors are those of `load_checkpoint`."""
    RuleConfig.check_option_names(config)
    weights = _decode(file.data, file.name, config)
    if file.shipped and not check_digest(*parse_arrays(file.data)).verified:
        raise ValueError(
            f"{file.name}: not the weights that celo2 ships: the file carries no digest, and its content is "
            "not known; reinstall celo2."
        )
    if file.hub is None:
        return weights
    return dataclasses.replace(weights, provenance={**weights.provenance, "hub": file.hub})


def _decode(data: bytes, name: str, config: Mapping[str, Any]) -> Weights:
    """Decodes the bytes of a weight file, in the format that the suffix of its name indicates."""
    try:
        if name.endswith(OURS):
            weights = Weights(*decode_safetensors(data))
            return dataclasses.replace(weights, config=weights.resolve(**config))
        weights = weights_from_tree(decode_theta(data), **config)
        origin = {"source": Path(name).name, "source_sha256": hashlib.sha256(data).hexdigest()}
        return dataclasses.replace(weights, provenance=origin)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def check_array(name: str, value: Any) -> np.ndarray:
    """Returns a read-only copy of an array; raises a ValueError unless it is float32 and finite."""
    array = np.asarray(value)
    if array.dtype != np.float32:
        raise ValueError(f"{name} has dtype {array.dtype}, expected float32; convert it first.")
    bad = int(np.count_nonzero(~np.isfinite(array)))
    if bad:
        raise ValueError(f"{name} has {bad} NaN or infinite numbers of {array.size}, expected none.")
    array = array.copy()
    array.setflags(write=False)
    return array


def _same(value: Any, own: Any) -> bool:
    """Returns whether a caller's value of an option equals the weights' own; sequences may have any type."""
    if isinstance(own, tuple):
        return isinstance(value, Iterable) and tuple(value) == own
    return value == own
