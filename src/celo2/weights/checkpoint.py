"""Weights of the rule and of the zoo: NumPy arrays with their training options and provenance.

Three formats are read, none with pickle, from disk or from the Hugging Face hub: safetensors of this package,
which contain everything; the public implementations' `theta.state`, which contains only the arrays, whose
names and shapes identify the optimizer; and the public PyTorch port's safetensors, also only arrays. Only
float32 is accepted: other dtypes are rejected, not converted. Files of this package contain the digest of
their content and are rejected if it does not match.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np

from celo2._utils.files import write_atomic
from celo2.config import CONTRACT_VERSION, RuleConfig, Schema
from celo2.weights.digests import Integrity, check_digest
from celo2.weights.port_format import PORT_CONFIG, PORT_FORM, from_port, is_port_form
from celo2.weights.safetensors_format import (
    Contents,
    check_version,
    decode_safetensors,
    encode_safetensors,
    parse_arrays,
)
from celo2.weights.schema import (
    as_tree,
    belongs_to,
    check_fit,
    flat_arrays,
    flatten,
    identify,
    read_shapes,
)
from celo2.weights.sources import OURS, RELEASED, SHIPPED, UPSTREAM, WeightFile, find_file
from celo2.weights.theta_state import decode_theta, encode_theta
from celo2.zoo.specs import MEMBERS, MemberConfig

SchemaT = TypeVar("SchemaT", bound=Schema)
WeightsT = TypeVar("WeightsT", bound="AnyWeights[Any]")


@dataclasses.dataclass(frozen=True, eq=False)
class AnyWeights(Generic[SchemaT]):
    """Trained weights of a learned optimizer, checked when built and read-only from then on.

    Attributes:
        max_bytes: The size limit of weight files.
        arrays: The arrays of `config.weight_shapes()` by name, float32, finite.
        config: The options; those not in `stated` are assumed to have their defaults.
        provenance: Free text by field: source, command, data, seed, outer_steps, date, …
        stated: The names of the options fixed by the file or the caller; always includes those that follow
            from the arrays' shapes.
        contract_version: The version of the feature table to which the arrays belong.

    Raises:
        ValueError: An array is missing, unexpected, misshapen, not float32 or not finite, or the contract
            version is unknown to this release.
    """

    max_bytes: ClassVar[int] = 1 << 26  # the largest preset of the zoo takes 9 MB

    arrays: Mapping[str, np.ndarray] = dataclasses.field(repr=False)
    config: SchemaT
    provenance: Mapping[str, str] = dataclasses.field(default_factory=dict)
    stated: frozenset[str] = dataclasses.field(default=frozenset(), repr=False)
    contract_version: int = CONTRACT_VERSION

    def __post_init__(self) -> None:
        """Checks every field and copies the arrays in the order of the network."""
        check_version(self.contract_version)
        self.config.check_option_names(self.stated)
        for field, text in self.provenance.items():
            if not isinstance(field, str) or not isinstance(text, str):
                raise ValueError(f"provenance must map text to text, got {field!r:.80}: {text!r:.80}.")
        arrays = flat_arrays(self.arrays, type(self.config))
        shapes = read_shapes(arrays)
        check_fit(shapes, self.config)
        checked = {name: _check_array(name, arrays[name]) for name in self.config.weight_shapes()}
        object.__setattr__(self, "arrays", MappingProxyType(checked))
        object.__setattr__(self, "provenance", MappingProxyType(dict(self.provenance)))
        object.__setattr__(self, "stated", self.stated.union(self.config.sizes_of(shapes)))

    def __reduce__(self) -> tuple[Any, ...]:
        """Supports `copy.deepcopy` and `pickle`, which reject read-only mappings."""
        arrays, provenance = dict(self.arrays), dict(self.provenance)
        return type(self), (arrays, self.config, provenance, self.stated, self.contract_version)

    @property
    def kind(self) -> str:
        """The optimizer's name: `"celo2"`, or one of `celo2.zoo.specs.MEMBERS`."""
        return self.config.kind

    def resolve(self, **options: Any) -> SchemaT:
        """Returns the options to run these weights with: their own, overridden by the caller's where allowed.

        Args:
            **options: Options of the optimizer. Those in `config.deployment_options` may always be chosen;
                options that define the trained weights must agree with the stated ones.

        Raises:
            TypeError: An option is unknown.
            ValueError: The options belong to another variant, or the arrays do not fit them.
        """
        self.config.check_option_names(options)
        fixed = self.stated - self.config.deployment_options
        wrong = [
            name for name in options if name in fixed and not _same(options[name], getattr(self.config, name))
        ]
        if wrong:
            raise ValueError(self._contradiction(wrong, options))
        resolved = self.config.replace(**options)
        check_fit(read_shapes(self.arrays), resolved)
        return resolved

    def with_options(self, **options: Any) -> Self:
        """Returns the weights with the options of `resolve`, which become stated."""
        config = self.resolve(**options)
        return dataclasses.replace(self, config=config, stated=self.stated.union(options))

    def with_provenance(self, **texts: str) -> Self:
        """Returns the weights with additional provenance fields."""
        return dataclasses.replace(self, provenance={**self.provenance, **texts})

    def _contradiction(self, wrong: Iterable[str], options: Mapping[str, Any]) -> str:
        found = ", ".join(f"{name}={getattr(self.config, name)!r}" for name in wrong)
        asked = ", ".join(f"{name}={options[name]!r}" for name in wrong)
        remedy = "leave the option out, or load weights that were trained with it"
        if "orthogonalize" in wrong:
            return _wrong_variant(found, asked, orthogonalize=bool(options["orthogonalize"]))
        return (
            f"wrong variant: these {self.config.variant} weights have {found}, asked for {asked}; {remedy}."
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Weights(AnyWeights[RuleConfig]):
    """Trained weights of the rule, with the attributes of `AnyWeights`; by default all options are stated.

    Example:
        >>> shapes = RuleConfig().weight_shapes()
        >>> Weights({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}).config.variant
        'celo2'
    """

    max_bytes: ClassVar[int] = 1 << 20  # the default network takes 1.4 kB

    config: RuleConfig = dataclasses.field(default_factory=RuleConfig)
    stated: frozenset[str] = dataclasses.field(default=frozenset(RuleConfig.option_names()), repr=False)


@dataclasses.dataclass(frozen=True, eq=False)
class ZooWeights(AnyWeights[MemberConfig]):
    """Trained weights of an optimizer of the zoo, with the attributes of `AnyWeights`.

    The type of `config` identifies the optimizer. By default only the options that the arrays fix are stated.
    """


def _wrong_variant(found: str, asked: str, *, orthogonalize: bool) -> str:
    """Returns the message for weights of one published variant in place of the other's."""
    (wanted, own), use = SHIPPED, "celo2_base (Celo2Base in PyTorch)"
    if not orthogonalize:
        wanted, own, use = own, wanted, "celo2 (Celo2 in PyTorch)"
    return (
        f"wrong variant: these are {own.capitalize()} weights ({found}, asked for {asked}); use {use} with "
        f"them, or leave weights= out for the shipped {wanted!r}."
    )


def make_weights(
    arrays: Mapping[str, Any], config: Schema, provenance: Mapping[str, str] | None = None
) -> AnyWeights[Any]:
    """Packs arrays and options, all of them stated, as weights of the optimizer they belong to."""
    return _class_of(config.kind)(arrays, config, provenance or {}, frozenset(config.option_names()))


def _class_of(kind: str) -> type[AnyWeights[Any]]:
    return ZooWeights if kind in MEMBERS else Weights


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
        source: `"celo2"` or `"celo2-base"` (shipped); a path to safetensors of this package or of the public
            PyTorch port, to an upstream `theta.state`, or to a folder that holds one; otherwise a hub
            repository `"owner/name"` (needs the `hub` extra). Local files take precedence.
        **config: Options of the rule that the file does not state. Sizes are read from the arrays
            and checked, as are options that the file does state. Upstream files known by their content or
            repository, and all files of the port, have the published options.

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
    return load_weights(source, Weights, **config)


def load_weights(source: str | os.PathLike[str], wanted: type[WeightsT], **options: Any) -> WeightsT:
    """Loads weights of the wanted class; sources and errors as in `load_checkpoint`.

    Args:
        source: Where the weights are.
        wanted: `Weights`, `ZooWeights`, or `AnyWeights` for either.
        **options: Options of the optimizer that the file does not state.
    """
    return decode_weights(find_file(source, wanted.max_bytes), wanted, **options)


def weights_from_tree(tree: Mapping[str, Any], **config: Any) -> Weights:
    """Builds weights from arrays in memory: `{"ff_mod_stack": {"~": {"w0__0": …}}}` or `{"w0__0": …}`.

    Args:
        tree: The arrays, float32.
        **config: Options of the rule; these and the sizes of the arrays become the stated options.

    Raises:
        TypeError: An option is unknown.
        ValueError: The arrays do not fit the options.
    """
    return _from_tree(tree, Weights, config)


def _from_tree(tree: Mapping[str, Any], wanted: type[WeightsT], options: Mapping[str, Any]) -> WeightsT:
    """Builds weights of the wanted class; the arrays' names and shapes identify an optimizer of the zoo."""
    kind = RuleConfig.kind if wanted is Weights else identify(tree)
    if kind is None and wanted is ZooWeights:
        names = list(flatten(tree))
        raise ValueError(
            f"not weights of {', '.join(MEMBERS)}: found {len(names)} arrays, "
            f"{', '.join(f'{name:.40}' for name in names[:4]) or 'none'} …."
        )
    schema = MEMBERS.get(kind or "", RuleConfig)
    arrays, config = fit_tree(tree, schema, options)
    return _class_of(schema.kind)(arrays, config, stated=frozenset(options))  # pyright: ignore[reportReturnType]


def fit_tree(
    tree: Mapping[str, Any], schema: type[SchemaT], options: Mapping[str, Any]
) -> tuple[dict[str, Any], SchemaT]:
    """Returns the arrays of a tree by name, and the options with the sizes read from them.

    Only names and shapes are used, so the arrays may be traced. See `weights_from_tree`.
    """
    schema.check_option_names(options)
    arrays = flat_arrays(tree, schema)
    shapes = read_shapes(arrays)
    config = schema(**{**schema.sizes_of(shapes), **options})
    check_fit(shapes, config)
    return arrays, config


def resolve_theta(
    theta: Weights | Mapping[str, Any] | str | os.PathLike[str] | None, **config: Any
) -> tuple[dict[str, Any], RuleConfig]:
    """Returns the arrays by name and the options with which a transform runs.

    Args:
        theta: Weights; a source that `load_checkpoint` accepts, such as a path; a tree of arrays, possibly
            traced; or None for the shipped weights: `"celo2"`, or `"celo2-base"` with `orthogonalize=False`.
        **config: Options of the rule; they must agree with those that the weights state.

    Raises:
        TypeError: An option is unknown, or theta has the wrong type.
        ValueError: The weights do not fit the options; the message names those that differ.
    """
    RuleConfig.check_option_names(config)
    if theta is None:
        theta = load_checkpoint(SHIPPED[0] if config.get("orthogonalize", True) else SHIPPED[1])
    if isinstance(theta, str | os.PathLike):
        theta = load_checkpoint(theta, **config)
    if isinstance(theta, Weights):
        return dict(theta.arrays), theta.resolve(**config)
    if isinstance(theta, Mapping):
        return fit_tree(theta, RuleConfig, config)
    raise TypeError(
        "theta must be Weights, a path or name of weights, a tree of arrays or None, got "
        f"{type(theta).__name__}."
    )


def without_newton_schulz(theta: Any) -> Any:
    """Returns Celo2's weights for use before another orthogonaliser; trees of arrays as they are."""
    if not isinstance(theta, Weights):
        return theta
    return dataclasses.replace(theta, config=theta.config.replace(orthogonalize=False))


def save_weights(path: str | os.PathLike[str], weights: AnyWeights[Any]) -> None:
    """Writes a weight file atomically.

    Args:
        path: `*.safetensors` for a file with optimizer, options, provenance and digest; `*.state` for the
            public implementations' format, which contains only the arrays.
        weights: The weights to write. For the zoo's, only the stated options are written.

    Raises:
        ValueError: The path has another suffix, the provenance is too long, or the variant of weights for
            safetensors is unknown.
    """
    path = Path(path)
    if path.suffix == OURS:
        if isinstance(weights, Weights) and "orthogonalize" not in weights.stated:
            raise ValueError(
                "these weights do not say which variant they are; load them with orthogonalize=True "
                "(Celo2) or orthogonalize=False (Celo2-base)."
            )
        data = encode_safetensors(Contents(*(getattr(weights, name) for name in Contents._fields)))
    elif path.suffix == UPSTREAM:
        data = encode_theta(as_tree(weights.arrays, type(weights.config)))
    else:
        raise ValueError(f"{path} must end in {OURS} or {UPSTREAM} (upstream's format).")
    if len(data) > weights.max_bytes:
        raise ValueError(f"{path} would have {len(data)} bytes, expected at most {weights.max_bytes}.")
    write_atomic(path, data)


def decode_weights(file: WeightFile, wanted: type[WeightsT], **options: Any) -> WeightsT:
    """Decodes a weight file that has been read; arguments and errors as in `load_weights`."""
    try:
        weights = _decode(file, wanted, options)
    except ValueError as error:
        raise ValueError(f"{file.name}: {error}") from error
    if len(file.data) > weights.max_bytes:
        raise ValueError(f"{file.name} has {len(file.data)} bytes, expected at most {weights.max_bytes}.")
    if file.shipped and not read_integrity(file).verified:
        raise ValueError(
            f"{file.name}: not the weights that celo2 ships: the file carries no digest, and its content is "
            "not known; reinstall celo2."
        )
    return weights if file.hub is None else weights.with_provenance(hub=file.hub)


def _decode(file: WeightFile, wanted: type[WeightsT], options: Mapping[str, Any]) -> WeightsT:
    """Decodes the content of a weight file, in the format indicated by its name and arrays."""
    if not file.name.endswith(OURS):
        return _decode_upstream(file, wanted, options)
    arrays, _ = parse_arrays(file.data)
    if is_port_form(arrays):
        return _decode_port(file, arrays, wanted, options)
    contents = decode_safetensors(file.data)
    weights = _require(wanted, contents.config.kind)(*contents)
    return weights.with_options(**options) if options else weights  # pyright: ignore[reportReturnType]


def _decode_upstream(file: WeightFile, wanted: type[WeightsT], options: Mapping[str, Any]) -> WeightsT:
    """Decodes an upstream file; if it or its repository is known, its options are the published ones."""
    tree = decode_theta(file.data)
    known = check_digest(flatten(tree), {}).known
    variant = (known and known.variant) or RELEASED.get(file.hub or "")
    if not variant or wanted is ZooWeights:
        return _from_tree(tree, wanted, options).with_provenance(**_origin(file))
    config = RuleConfig(orthogonalize=variant == SHIPPED[0])
    note = f"not in the file; those of {variant} as published, since the file is known"
    weights = Weights(flat_arrays(tree, RuleConfig), config, {**_origin(file), "options": note})
    return weights.with_options(**options)  # pyright: ignore[reportReturnType]


def _decode_port(
    file: WeightFile, arrays: Mapping[str, np.ndarray], wanted: type[WeightsT], options: Mapping[str, Any]
) -> WeightsT:
    """Decodes a file of the public PyTorch port (`celo2.weights.port_format`)."""
    for name, array in arrays.items():
        _check_array(name, array)  # here, so that messages show the array's name in the file
    found = from_port(arrays)
    note = f"not in the file, whose form is {PORT_FORM}; those of {PORT_CONFIG.variant} as published"
    weights = _require(wanted, PORT_CONFIG.kind)(found, PORT_CONFIG, {**_origin(file), "options": note})
    return weights.with_options(**options)  # pyright: ignore[reportReturnType]


def _require(wanted: type[AnyWeights[Any]], kind: str) -> type[AnyWeights[Any]]:
    """Returns the class of an optimizer's weights; raises a ValueError unless it is a wanted one."""
    found = _class_of(kind)
    if not issubclass(found, wanted):
        expected = "Celo2" if wanted is Weights else ", ".join(MEMBERS)
        raise ValueError(f"not weights of {expected}: {belongs_to(kind)}.")
    return found


def _origin(file: WeightFile) -> dict[str, str]:
    """Returns the provenance of weights in a format without provenance: the file's name and checksum."""
    return {"source": Path(file.name).name, "source_sha256": hashlib.sha256(file.data).hexdigest()}


def read_integrity(file: WeightFile) -> Integrity:
    """Checks the digest of a weight file; see `celo2.weights.digests`.

    The digest of files without metadata is that of their arrays under upstream's names, whatever the format.

    Raises:
        ValueError: It is not a weight file, or its content does not match its digest.
    """
    if not file.name.endswith(OURS):
        return check_digest(flatten(decode_theta(file.data)), {})
    arrays, metadata = parse_arrays(file.data)
    if is_port_form(arrays):
        return check_digest(flatten(as_tree(from_port(arrays), RuleConfig)), {})
    return check_digest(arrays, metadata)


def _check_array(name: str, value: Any) -> np.ndarray:
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
