"""`Celo2` and `Celo2Base`: the rule as PyTorch optimizers.

Source: arXiv 2602.19142. State, groups, hooks and checkpoints are those of `torch.optim.Optimizer`. Options
shared with `celo2.jax.transform.celo2` come first, in the same order, with the same defaults.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from celo2.constants import ADAMW_BETAS
from celo2.harness import Harness, match_scales, resolve_harness
from celo2.newton_schulz import Polynomial
from celo2.torch.harness import Parts
from celo2.torch.optimizer.base import Params, RuleOptimizer, Theta
from celo2.torch.optimizer.groups import rename_options
from celo2.torch.routing.labels import Numbers, Overrides

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Celo2(RuleOptimizer):
    """Updates hidden matrices by Celo2, the learned rule with Newton–Schulz, and other parameters by AdamW.

    With learning rate η and weight decay λ, for the rule's matrices and for the other parameters p:

        p ← p - η (d / rms(d) + λ p),    d = NewtonSchulz(network(30 features of g, p and accumulators))
        p ← p - 20 η (m̂ / (√v̂ + 1e-8) + λ p),    AdamW's bias-corrected means of g and g²

    Every feature x enters the network as x / rms(x). The step of a matrix has root mean square 1, so the
    learning rate is its change per step; try 1e-4 to 1e-2. Embeddings, positional tables, output heads,
    routers and everything of rank ≤ 1 are updated by AdamW.

    The state has about 16 bytes per parameter of the rule, 8 or 5 with `state_dtype`, and 8 per parameter of
    AdamW.

    Args:
        params: A module, whose layers decide the routing (`celo2.torch.find_routes`), or what every
            torch optimizer accepts: parameters, named parameters, groups. Parameters without a module
            are used as stored, as in the reference, and the rule updates those of rank ≥ 2.
        lr: The root mean square of a matrix's change per step, unless changed by `harness` or `match`: a
            float or a scalar tensor, ≥ 0. Default 1e-3.
        weights: The network's weights: `"celo2"`, a path or a hub repository as in
            `celo2.load_checkpoint`, `celo2.Weights`, or a tree of arrays. Default: the shipped `"celo2"`.
        weight_decay: Decoupled weight decay λ ≥ 0, multiplied by each algorithm's learning rate. Default 0.
        adamw_lr_scale: The learning rate of AdamW divided by `lr`, ≥ 0. None: the harness's, which is 20 in
            "paper"; 1 with `match`.
        adamw_betas: The decays of AdamW, in [0, 1); the rule has its own. Default 0.9 and 0.95.
        betas: An alias of `adamw_betas`, the name used by `torch.optim.AdamW` and in groups; a scheduler that
            cycles momentum changes the first.
        overrides: Corrections of the routing, as in `find_routes`.
        dimension_numbers: The matrix axes of parameters, as in `find_routes`.
        split_heads: As in `find_routes`.
        state_dtype: None, `torch.bfloat16` or `torch.int8`. With a dtype, momenta and rms use 8 or 5 bytes
            per parameter instead of 16, and are rounded stochastically by a hash of the step count, so runs
            repeat exactly. int8 stores momenta as codes with one scale per row
            (`celo2.torch.quantization`), and rms as bfloat16; it needs whole rows of a `DTensor` in one
            process.
        skip_zero_gradients: Whether matrices updated by the rule (individually in a stack) are skipped if
            their gradient is exactly zero, such as an idle expert's: no step and no change of their state,
            while weight decay continues. False: such a matrix moves by the full learning rate, as in the
            reference.
        skip_nonfinite_gradients: Whether parameters whose gradient contains an infinity or NaN are skipped,
            as if they had none, counted in `num_nonfinite`, and reported once by a warning. Each step then
            waits for the device. False: one NaN makes its whole matrix and state NaN for good.
        ns_coeffs: The coefficients of Newton–Schulz: three for all five iterations, or three for each
            iteration, such as `celo2.polar_express(4)`. None: the weights' own, by default Muon's.
        harness: How matrices are treated beyond the learned direction, and AdamW's share: "paper", as in the
            Celo2 paper; "plus", the same with AdamW at 5 × instead of 20 × the learning rate; "eigenbasis",
            in SOAP's eigenbasis, which did best; or your own `Harness`.
        match: None, or "adamw" to use the learning rate and weight decay that AdamW was tuned with. A matrix
            step then has root mean square 0.2, and AdamW's share uses the learning rate itself.
        foreach: True: PyTorch's own operations, small tensors of equal shape together; False: one
            tensor at a time. Applies to both algorithms, as does `fused`.
        fused: True: compiled kernels, for the rule by Numba on CPUs and by Triton on CUDA devices; False:
            none. By default, if `foreach` is also None, the fastest that is installed.
        capturable: Keeps the step count on the device, for CUDA graphs; not with `eigenbasis_every`.
        maximize: Maximizes the objective instead of minimizing it.
        algorithm: `"celo2"` or `"adamw"` for all parameters, whatever their routing; also a group option.
        module: The module that the parameters or groups belong to, for its routing and names. Matrices that
            it does not contain are used as stored, with a `RoutingWarning`.
        process_group: The processes with the same parameters and gradients (replicated training,
            as with `DistributedDataParallel`): Newton–Schulz is divided among them. Not needed for
            `DTensor`s (`fully_shard`, tensor parallelism), which carry their own device mesh.

    Attributes:
        num_nonfinite: The number of times that `skip_nonfinite_gradients` has skipped a parameter.

    Raises:
        RuntimeError: `fused=True`, but kernels are not installed or not available.
        TypeError: A parameter is not a dense floating-point tensor, or is complex and routed to the rule; or
            an option has the wrong type.
        ValueError: An option is out of its range, two contradict each other, the parameters are a module and
            `module` is a different one, or the weights are of another variant.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> optimizer = Celo2(model, lr=1e-3, weight_decay=0.1)
        >>> model(torch.ones(1, 4)).sum().backward()
        >>> optimizer.step()

        At AdamW's learning rate, with normalised rows:

        >>> Celo2(model, 3e-4, harness=Harness(row_decay=0.95), match="adamw").defaults["adamw_lr_scale"]
        1.0

    References:
        Celo2: arXiv 2602.19142, section 3; Newton–Schulz and the AdamW branch, section 3.4. Muon (Jordan et
        al., 2024, https://kellerjordan.github.io/posts/muon). AdamW: arXiv 1711.05101. `match`: Moonlight,
        arXiv 2502.16982, section 2.2. The harness: `Harness`.
    """

    _base = False

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        *,
        weights: Theta = "celo2",
        weight_decay: float = 0.0,
        adamw_lr_scale: float | None = None,
        adamw_betas: tuple[float, float] | None = None,
        betas: tuple[float, float] | None = None,
        overrides: Overrides = None,
        dimension_numbers: Numbers = None,
        split_heads: bool = False,
        state_dtype: torch.dtype | None = None,
        skip_zero_gradients: bool = True,
        skip_nonfinite_gradients: bool = False,
        ns_coeffs: Polynomial | Sequence[Polynomial] | None = None,
        harness: Harness | str = "paper",
        match: str | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        maximize: bool = False,
        algorithm: str | None = None,
        module: nn.Module | None = None,
        process_group: ProcessGroup | None = None,
    ):
        harness = resolve_harness(harness)
        rms, adamw_share = match_scales(match, adamw_lr_scale, harness.adamw_lr_scale)
        given = {"betas": betas, "adamw_betas": adamw_betas}
        decays = rename_options({name: value for name, value in given.items() if value is not None})
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "adamw_lr_scale": adamw_share,
            "betas": decays.get("betas", ADAMW_BETAS),
            "foreach": foreach,
            "fused": fused,
            "capturable": capturable,
            "maximize": maximize,
            "algorithm": algorithm,
        }
        routing = {
            "overrides": overrides,
            "dimension_numbers": dimension_numbers,
            "split_heads": split_heads,
        }
        skip = {"zero": skip_zero_gradients, "nonfinite": skip_nonfinite_gradients}
        super().__init__(
            params,
            defaults,
            weights,
            module,
            state_dtype,
            process_group,
            skip,
            harness.ns_options(ns_coeffs),
            Parts(harness, rms),
            **routing,
        )


class Celo2Base(Celo2):
    """Updates every parameter by Celo2-base, the learned rule without Newton–Schulz.

    With learning rate η and weight decay λ, for each parameter p:

        p ← p - η (d / rms(d) + λ p),    d = network(30 features of g, p and accumulators; 15 below rank 2)

    Every feature x enters the network as x / rms(x). Every step has root mean square 1, so the learning rate
    is the change per step; try 1e-4 to 1e-2. AdamW updates only parameters that a group's `algorithm` or an
    override assigns to it. The state has about 16 bytes per parameter.

    Args:
        params: As in `Celo2`; a module's layers decide which axes form a parameter's matrix.
        lr: The root mean square of every tensor's change per step, as in `Celo2`.
        weights: As in `Celo2`; the default is the shipped `"celo2-base"`.
        **options: As in `Celo2`, with the same defaults, except for `ns_coeffs`, `harness` and `match`,
            which apply to Newton–Schulz steps.

    Raises:
        RuntimeError: As in `Celo2`.
        TypeError: As in `Celo2`.
        ValueError: As in `Celo2`.

    Example:
        >>> model = nn.Linear(4, 2)
        >>> optimizer = Celo2Base(model, lr=1e-3)
        >>> model(torch.ones(1, 4)).sum().backward()
        >>> optimizer.step()

    References:
        Celo2-base: arXiv 2602.19142, section 3. Factored second moments: Adafactor, arXiv 1804.04235, eq. 4.
    """

    _base = True

    def __init__(
        self, params: Params, lr: float | Tensor = 1e-3, *, weights: Theta = "celo2-base", **options: Any
    ):
        super().__init__(params, lr, weights=weights, **options)
