"""Optax transforms of the rule: `scale_by_celo2`, `celo2` and `celo2_base`.

Source: arXiv 2602.19142. `scale_by_celo2` computes the step alone; `celo2` and `celo2_base` are complete
optimizers with weight decay and learning rate, the twins of `celo2.torch.Celo2` and `Celo2Base`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from celo2._utils.ranges import check_betas, check_scale
from celo2.constants import ADAMW_BETAS, GRAD_CLIP
from celo2.harness import Harness, match_scales, resolve_harness
from celo2.jax.adamw import scale_by_wide_adam
from celo2.jax.batching import Leaf, update_leaves
from celo2.jax.dimensions import DimensionNumbers, Layout
from celo2.jax.harness.decay import add_cautious_weight_decay
from celo2.jax.harness.eigenbasis import in_eigenbasis
from celo2.jax.harness.norms import floor_update_ratio, preserve_norms
from celo2.jax.harness.orthogonalizers import orthogonalize_by
from celo2.jax.harness.rows import normalize_rows
from celo2.jax.nonfinite import Keep, choose_finite, skip_nonfinite
from celo2.jax.routing.labels import find_dimension_numbers, param_labels
from celo2.jax.runtime import leave_shardings_to_compiler
from celo2.jax.state import (
    ScaleByCelo2State,
    check_state_dtype,
    init_state,
    leaves_to_state,
    make_layouts,
    match_params,
    state_to_leaves,
)
from celo2.newton_schulz import Polynomial
from celo2.weights.checkpoint import (
    SHIPPED,
    Weights,
    load_checkpoint,
    resolve_theta,
    without_newton_schulz,
)
from celo2.weights.simplify import collapse, simplify

Theta = Weights | Mapping[str, Any] | str | os.PathLike[str] | None


def scale_by_celo2(
    theta: Theta = None,
    *,
    dimension_numbers: Any = None,
    state_dtype: Any = None,
    skip_zero_gradients: bool = False,
    **config: Any,
) -> optax.GradientTransformation:
    """Converts gradients to the rule's un-negated steps, each of root mean square 1.

    For an array with gradient g and parameter p, with every feature x normalised as x / rms(x):

        g ← clip(g, ±1000);  m, v, r, c ← running means of g, g², and g² over rows and over columns
        d ← network(features(g, p, m, v, r, c))   30 features of each element, 15 below rank 2
        d ← NewtonSchulz(d)                       if `orthogonalize`, for rank ≥ 2
        step ← d / rms(d)

    `update` needs the parameters. Accumulators are float32 (float64 for float64 parameters)
    from the first step unless `state_dtype` says otherwise; updates have the gradient's dtype.
    Outside `jax.jit` the first update compiles the rule, and later ones reuse it.

    Args:
        theta: The network's weights: a result of `load_checkpoint`, the upstream tree
            `{"ff_mod_stack": {"~": {"w0__0": …}}}`, or a dict of its arrays, with the shapes of
            `RuleConfig.weight_shapes`. None: the shipped weights that fit the options.
        dimension_numbers: The matrix axes of the parameters: a tree like the parameters of
            `DimensionNumbers` (or Optax's `MuonDimensionNumbers`, or None), or a callable that
            makes one from the parameters. None: the reference's conventions, factored over the two
            largest axes, normalised and orthogonalised over the last two.
        state_dtype: None, "bfloat16" or "int8". With a dtype, momenta and rms use 8 or 5 bytes per parameter
            instead of 16, and are rounded stochastically by a hash of the step count, so runs repeat exactly.
            "int8" stores momenta as codes with one scale per row (`celo2.jax.quantization`), and rms as
            bfloat16.
        skip_zero_gradients: Whether matrices whose gradient is exactly zero, such as an idle expert's, are
            skipped (individually in a stack; a vector as a whole): their step is 0 and their accumulators
            stay unchanged. False: such a matrix gets a full step, as in the reference. The rule sees
            squares, which in float32 are zero below 1e-19 or so.
        **config: Options of the rule, see `RuleConfig`; `orthogonalize` is True by default.

    Returns:
        A transform whose updates have the parameters' shapes and must be multiplied by -learning_rate. Its
        state has about 16 bytes per float32 parameter, 8 or 5 with `state_dtype`.

    Raises:
        TypeError: An option is unknown, or a parameter is not a real floating-point array.
        ValueError: The weights do not fit the options, `state_dtype` is not supported, or `update` got no
            parameters.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from celo2.config import RuleConfig
        >>> weights = {name: jnp.ones(shape) for name, shape in RuleConfig().weight_shapes().items()}
        >>> tx = optax.chain(scale_by_celo2(weights), optax.scale_by_learning_rate(1e-3))
        >>> params = {"kernel": jnp.ones((4, 3))}
        >>> updates, state = tx.update(params, tx.init(params), params)
        >>> updates["kernel"].shape
        (4, 3)

    References:
        Celo2: arXiv 2602.19142, section 3. Newton–Schulz with these coefficients: Muon (Jordan et al., 2024,
        https://kellerjordan.github.io/posts/muon), used in section 3.4 of Celo2. Factored second moments:
        Adafactor, arXiv 1804.04235, eq. 4.
    """
    arrays, rule = collapse(*simplify(*resolve_theta(theta, **config)))
    stored = check_state_dtype(state_dtype)

    def update_all(leaves: list[Leaf], count: jax.Array, layouts: tuple[Layout, ...]) -> list[Any]:
        def update_here(arrays: Any, leaves: list[Leaf], count: jax.Array) -> list[Any]:
            return update_leaves(arrays, leaves, layouts, count, rule, skip_zero=skip_zero_gradients)

        like = [(leaf.grad, leaf.accumulators) for leaf in leaves]
        return leave_shardings_to_compiler(update_here, like, arrays, leaves, count)

    # Outside `jit` each step would launch thousands of operations, and recompile some of them.
    compiled = jax.jit(update_all, static_argnums=2)

    def init(params: optax.Params) -> ScaleByCelo2State:
        return init_state(params, make_layouts(params, dimension_numbers), rule, stored)

    def update(
        updates: optax.Updates, state: ScaleByCelo2State, params: optax.Params | None = None
    ) -> tuple[optax.Updates, ScaleByCelo2State]:
        count = jnp.asarray(optax.safe_increment(state.count))
        params = match_params(updates, params)
        grads, treedef = jax.tree.flatten(updates)
        params_and_states = zip(treedef.flatten_up_to(params), state_to_leaves(state, treedef), strict=True)
        leaves = [Leaf(grad, *rest) for grad, rest in zip(grads, params_and_states, strict=True)]
        layouts = tuple(treedef.flatten_up_to(make_layouts(updates, dimension_numbers)))
        traced = any(isinstance(x, Tracer) for x in jax.tree.leaves((leaves, count, arrays)))
        results = (update_all if traced else compiled)(leaves, count, layouts)
        steps, new = zip(*results, strict=True) if results else ((), ())
        return treedef.unflatten(steps), leaves_to_state(new, count, treedef, state)

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


def celo2(
    learning_rate: optax.ScalarOrSchedule,
    *,
    weights: Theta = None,
    weight_decay: float = 0.0,
    mask: Any = None,
    adamw_lr_scale: float | None = None,
    adamw_betas: tuple[float, float] = ADAMW_BETAS,
    overrides: Any = None,
    dimension_numbers: Any = None,
    state_dtype: Any = None,
    skip_zero_gradients: bool = True,
    skip_nonfinite_gradients: bool = False,
    ns_coeffs: Polynomial | Sequence[Polynomial] | None = None,
    harness: Harness | str = "paper",
    match: str | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Updates hidden matrices by Celo2, the learned rule with Newton–Schulz, and other parameters by AdamW.

    With learning rate η and weight decay λ, for the rule's matrices and for the other parameters p:

        p ← p - η (d / rms(d) + λ p),    d = NewtonSchulz(network(30 features of g, p and accumulators))
        p ← p - 20 η (m̂ / (√v̂ + 1e-8) + λ p),    AdamW's bias-corrected means of g and g²

    Every feature x enters the network as x / rms(x). The step of a matrix has root mean square 1, so the
    learning rate is its change per step; try 1e-4 to 1e-2. Embeddings, positional tables, output heads,
    routers and everything of rank ≤ 1 are updated by AdamW.

    Args:
        learning_rate: The root mean square of a matrix's change per step, unless changed by `harness` or
            `match`: a float ≥ 0, or a schedule that maps the step count to one.
        weights: The network's weights: a path, a name or a hub repository as in `load_checkpoint`, or as in
            `scale_by_celo2`; None: the shipped "celo2".
        weight_decay: Decoupled weight decay λ ≥ 0, multiplied by each branch's learning rate. Default 0.
        mask: The parameters that decay, as in `optax.adamw`; None: all.
        adamw_lr_scale: The learning rate of the AdamW branch divided by `learning_rate`, ≥ 0. None: the
            harness's, which is 20 in "paper"; 1 with `match`.
        adamw_betas: The decays of the AdamW branch, in [0, 1). Default 0.9 and 0.95.
        overrides: Corrections of the routing, as in `param_labels`.
        dimension_numbers: The matrix axes of parameters for which names and shapes give the wrong ones
            (`find_dimension_numbers` infers those of convolutions, attention kernels, stacks of layers and of
            experts, fused query-key-value and gate-up kernels; `label_table` shows them). A mapping from
            regular expressions, matched against the path like `overrides`, to `DimensionNumbers` or None (the
            parameter as stored); or a tree as in `scale_by_celo2`, parts of which may be missing or None.
            In a tree of Optax's `MuonDimensionNumbers`, None means AdamW, as there.
        state_dtype: The dtype of the rule's state, as in `scale_by_celo2`.
        skip_zero_gradients: As in `scale_by_celo2`, for matrices that the rule updates; weights still decay.
        skip_nonfinite_gradients: Whether arrays whose gradient contains an infinity or NaN are skipped, as if
            they had no gradient, and counted in the state: `optax.tree.get(state, "num_nonfinite")`. False:
            one NaN makes its whole array and state NaN for good. `optax.apply_if_finite` skips whole steps.
        ns_coeffs: The coefficients of Newton–Schulz: three for all five iterations, or three for each
            iteration, such as `celo2.polar_express(4)`. None: the weights' own, by default Muon's.
        harness: How matrices are treated beyond the learned direction, and AdamW's share: "paper", as in the
            Celo2 paper; "plus", the same with AdamW at 5 × instead of 20 × the learning rate; "eigenbasis",
            in SOAP's eigenbasis, which did best; or your own `Harness`.
        match: None, or "adamw" to use the learning rate and weight decay that AdamW was tuned with. A matrix
            step then has root mean square 0.2, and AdamW's share uses the learning rate itself.

    Returns:
        A transform whose updates `optax.apply_updates` adds to the parameters. Its state has about 16 bytes
        per float32 parameter of the rule and 8 per parameter of AdamW.

    Raises:
        TypeError: A number has the wrong type, such as text; or as in `scale_by_celo2`.
        ValueError: A number is out of its range; `skip_nonfinite_gradients` is set without
            `skip_zero_gradients`; as in `scale_by_celo2`; and in `init`, as in `param_labels`.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> params = {"hidden": {"kernel": jnp.ones((4, 3)), "bias": jnp.zeros(3)}}
        >>> tx = celo2(1e-3, weight_decay=0.1)
        >>> updates, state = tx.update(params, tx.init(params), params)
        >>> new = optax.apply_updates(params, updates)
        >>> new["hidden"]["kernel"].shape
        (4, 3)

    References:
        Celo2: arXiv 2602.19142, section 3; Newton–Schulz and the AdamW branch, section 3.4. Muon (Jordan et
        al., 2024, https://kellerjordan.github.io/posts/muon). AdamW: arXiv 1711.05101. `match`: Moonlight,
        arXiv 2502.16982, section 2.2. The harness: `Harness`.
    """
    check_scale("learning_rate", learning_rate)
    check_scale("weight_decay", weight_decay)
    if adamw_lr_scale is not None:
        check_scale("adamw_lr_scale", adamw_lr_scale)
    check_betas("adamw_betas", adamw_betas)
    harness = resolve_harness(harness)
    if harness.eigenbasis_every is not None and check_state_dtype(state_dtype) == jnp.int8:
        raise ValueError(
            'state_dtype="int8" does not go with eigenbasis_every, whose bases the codes cannot follow; use '
            '"bfloat16".'
        )
    rms, adamw_share = match_scales(match, adamw_lr_scale, harness.adamw_lr_scale)
    scaled = _scale_learning_rate(learning_rate, adamw_share)
    decay = add_cautious_weight_decay if harness.cautious_decay else optax.add_decayed_weights
    adamw = optax.chain(
        scale_by_wide_adam(adamw_betas), decay(weight_decay, mask), optax.scale_by_learning_rate(scaled)
    )
    coefficients = harness.ns_options(ns_coeffs)
    loaded = _load(weights, orthogonalize=True, state_dtype=state_dtype, **coefficients)
    loaded = loaded if harness.has_newton_schulz else without_newton_schulz(loaded)

    @_cache_by_structure
    def partition(labels: Any, params: optax.Params) -> optax.GradientTransformationExtraArgs:
        numbers = find_dimension_numbers(params, dimension_numbers)
        make_direction = partial(
            scale_by_celo2,
            loaded,
            orthogonalize=harness.has_newton_schulz,
            state_dtype=state_dtype,
            skip_zero_gradients=skip_zero_gradients,
            **coefficients,
        )
        before, after = _harness_parts(harness, make_direction, lambda _: numbers)
        scale = [] if rms == 1 else [optax.scale(rms)]
        rule = optax.chain(
            *before,
            *scale,
            decay(weight_decay, mask),
            optax.scale_by_learning_rate(learning_rate),
            *after,
        )
        branches: dict[Hashable, optax.GradientTransformation] = {"celo2": rule, "adamw": adamw}
        return optax.partition(branches, lambda _: labels)

    def init(params: optax.Params) -> optax.OptState:
        labels = param_labels(params, overrides=overrides, dimension_numbers=dimension_numbers)
        return partition(labels, params).init(params)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        params = match_params(updates, params)
        labels = _labels_of_state(params, state)
        return partition(labels, params).update(updates, state, params, **extra)

    tx = optax.GradientTransformationExtraArgs(init, update)
    return _guard(tx, skip_zero_gradients, _keep_moments) if skip_nonfinite_gradients else tx


def celo2_base(
    learning_rate: optax.ScalarOrSchedule,
    *,
    weights: Theta = None,
    weight_decay: float = 0.0,
    mask: Any = None,
    dimension_numbers: Any = None,
    state_dtype: Any = None,
    skip_zero_gradients: bool = True,
    skip_nonfinite_gradients: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Updates every parameter by Celo2-base, the learned rule without Newton–Schulz.

    With learning rate η and weight decay λ, for each parameter p:

        p ← p - η (d / rms(d) + λ p),    d = network(30 features of g, p and accumulators; 15 below rank 2)

    Every feature x enters the network as x / rms(x). Every step has root mean square 1, so the learning rate
    is the change per step; try 1e-4 to 1e-2.

    Args:
        learning_rate: The root mean square of every array's change per step: a float ≥ 0, or a schedule that
            maps the step count to one.
        weights: The network's weights as in `scale_by_celo2`; None: the shipped "celo2-base".
        weight_decay: Decoupled weight decay λ ≥ 0, multiplied by the learning rate. Default 0.
        mask: The parameters that decay, as in `optax.adamw`; None: all.
        dimension_numbers: The matrix axes of parameters, as in `celo2`; there is no AdamW here, so None
            among Optax's means the parameter as stored.
        state_dtype: The dtype of the rule's state, as in `scale_by_celo2`.
        skip_zero_gradients: As in `scale_by_celo2`, for every array; weights still decay.
        skip_nonfinite_gradients: Whether arrays whose gradient contains an infinity or NaN are skipped, as if
            they had no gradient, and counted in the state: `optax.tree.get(state, "num_nonfinite")`. False:
            one NaN makes its whole array and state NaN for good. `optax.apply_if_finite` skips whole steps.

    Returns:
        A transform whose updates `optax.apply_updates` adds to the parameters. Its state has about 16 bytes
        per float32 parameter.

    Raises:
        TypeError: A number has the wrong type, such as text; or as in `scale_by_celo2`.
        ValueError: A number is out of its range; `skip_nonfinite_gradients` is set without
            `skip_zero_gradients`; as in `scale_by_celo2`.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> params = {"kernel": jnp.ones((4, 3))}
        >>> tx = celo2_base(1e-3)
        >>> updates, state = tx.update(params, tx.init(params), params)
        >>> new = optax.apply_updates(params, updates)
        >>> new["kernel"].shape
        (4, 3)

    References:
        Celo2-base: arXiv 2602.19142, section 3. Factored second moments: Adafactor, arXiv 1804.04235, eq. 4.
    """
    check_scale("learning_rate", learning_rate)
    check_scale("weight_decay", weight_decay)
    loaded = _load(weights, orthogonalize=False, state_dtype=state_dtype)

    @_cache_by_structure
    def complete(params: optax.Params) -> optax.GradientTransformationExtraArgs:
        numbers = find_dimension_numbers(params, dimension_numbers, base=True)
        direction = scale_by_celo2(
            loaded,
            orthogonalize=False,
            dimension_numbers=lambda _: numbers,
            state_dtype=state_dtype,
            skip_zero_gradients=skip_zero_gradients,
        )
        return optax.chain(
            direction,
            optax.add_decayed_weights(weight_decay, mask),
            optax.scale_by_learning_rate(learning_rate),
        )

    def init(params: optax.Params) -> optax.OptState:
        return complete(params).init(params)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        params = match_params(updates, params)
        return complete(params).update(updates, state, params, **extra)

    tx = optax.GradientTransformationExtraArgs(init, update)
    return _guard(tx, skip_zero_gradients) if skip_nonfinite_gradients else tx


def _load(weights: Theta, *, orthogonalize: bool, state_dtype: Any, **coefficients: Any) -> Any:
    """Loads the weights and checks the options at construction."""
    if weights is None:
        weights = SHIPPED[0] if orthogonalize else SHIPPED[1]
    if isinstance(weights, str | os.PathLike):
        weights = load_checkpoint(weights, orthogonalize=orthogonalize)
    scale_by_celo2(weights, orthogonalize=orthogonalize, state_dtype=state_dtype, **coefficients)
    return weights


def _cache_by_structure(
    make: Callable[..., optax.GradientTransformationExtraArgs],
) -> Callable[..., optax.GradientTransformationExtraArgs]:
    """Caches the transform of each tree structure: outside `jit` a new one would compile at each step."""
    made: dict[Hashable, optax.GradientTransformationExtraArgs] = {}

    def find(*trees: Any) -> optax.GradientTransformationExtraArgs:
        leaves, treedef = jax.tree.flatten(trees)
        facts = ((leaf.shape, leaf.dtype) if hasattr(leaf, "dtype") else leaf for leaf in leaves)
        key = treedef, *facts
        try:
            hash(key)
        except TypeError:  # a module with unhashable fields
            return make(*trees)
        if key not in made:
            made[key] = make(*trees)
        return made[key]

    return find


def _guard(
    tx: optax.GradientTransformationExtraArgs, skip_zero_gradients: bool, keep: Keep | None = None
) -> optax.GradientTransformationExtraArgs:
    """Makes an optimizer skip arrays with non-finite gradients."""
    if not skip_zero_gradients:
        raise ValueError(
            "skip_nonfinite_gradients needs skip_zero_gradients=True: to the rule, a gradient that is left "
            "out is zero."
        )
    return skip_nonfinite(tx, keep)


def _keep_moments(finite: Any, new: Any, old: Any) -> Any:
    """Restores the AdamW moments of skipped arrays, which a gradient of zero would change."""
    branch = new.inner_states["adamw"]
    moments, before = (state.inner_states["adamw"].inner_state[0] for state in (new, old))
    kept = moments._replace(
        mu=choose_finite(finite, moments.mu, before.mu), nu=choose_finite(finite, moments.nu, before.nu)
    )
    branch = branch._replace(inner_state=(kept, *branch.inner_state[1:]))
    return new._replace(inner_states={**new.inner_states, "adamw": branch})


def _harness_parts(
    harness: Harness, make_direction: Callable[..., optax.GradientTransformation], numbers: Any
) -> tuple[list[optax.GradientTransformation], list[optax.GradientTransformation]]:
    """Returns the transforms before weight decay and learning rate, the direction first, and those after."""
    before: list[optax.GradientTransformation] = [make_direction(dimension_numbers=numbers)]
    if harness.eigenbasis_every is not None:
        before = [rotate_direction(make_direction, harness.eigenbasis_every, numbers)]
    if callable(harness.orthogonalizer):
        before.append(orthogonalize_by(harness.orthogonalizer, dimension_numbers=numbers))
    if harness.row_decay is not None:
        before.append(normalize_rows(harness.row_decay, dimension_numbers=numbers))
    if harness.min_update_ratio:
        before.append(floor_update_ratio(harness.min_update_ratio, dimension_numbers=numbers))
    after = [preserve_norms(dimension_numbers=numbers)] if harness.preserve_norms else []
    return before, after


def rotate_direction(
    make_direction: Callable[..., optax.GradientTransformation], every: int, numbers: Any
) -> optax.GradientTransformation:
    """Makes a direction of the rule in the eigenbasis, which is updated every `every` steps."""
    inner = make_direction(dimension_numbers=_stack_dimension_numbers)
    # The rule clips its inputs, which in the basis are not the gradient's own coordinates.
    return optax.chain(optax.clip(GRAD_CLIP), in_eigenbasis(inner, every=every, dimension_numbers=numbers))


def _stack_dimension_numbers(params: optax.Params) -> Any:
    """Returns the dimension numbers inside `in_eigenbasis`, where matrices have one batch axis."""
    return jax.tree.map(lambda param: DimensionNumbers(1, 2) if param.ndim == 3 else None, params)


def _labels_of_state(params: optax.Params, state: Any) -> Any:
    """Reads back the labels from `init`: the rule's state has no arrays for parameters that AdamW updates.

    They cannot be recomputed: arrays shared by two leaves are distinct in gradients and tracers.
    """
    nodes = jax.tree.leaves(state.inner_states["celo2"], is_leaf=_is_rule_state)
    momentum = next(node for node in nodes if _is_rule_state(node)).momentum[0]

    def label(_: Any, leaf: Any) -> str:
        return "adamw" if isinstance(leaf, optax.MaskedNode) else "celo2"

    return jax.tree.map(label, params, momentum)


def _is_rule_state(node: Any) -> bool:
    return isinstance(node, ScaleByCelo2State)


def _scale_learning_rate(learning_rate: optax.ScalarOrSchedule, scale: float) -> optax.ScalarOrSchedule:
    if callable(learning_rate):
        return lambda count: scale * learning_rate(count)
    return scale * learning_rate
