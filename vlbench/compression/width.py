"""Dimensions of a tower's residual stream as units. The unit is called "width", and its key in a cut is `TOWER.width`.

A gate z on dimension u multiplies what is written to it and what the norms give of it, and norms run over the entries
whose gate is not 0 (as Sheared LLaMA's masks, arXiv 2310.06694): at z = 0 the gated model equals the cut one, because
whatever reads the stream sees zeros there, and no statistic counts them.

A dimension's cost is no sum of its own: a matrix of the prunable set loses rows by one choice and columns by another,
so that what is left is the product of what is kept of each. `entries_left` counts it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..structure import Slice, Stream, Structure, Tower
from .depth import key_of

UNIT = "width"
NEAR = 0.02  # of the prunable set: a target is reached where what can be removed comes as near to it


def key_of_width(tower: Tower) -> str:
    """The name under which the kept dimensions of a tower's stream stand in a cut."""
    return f"{tower.name}.width"


def stream_of(tower: Tower) -> Stream:
    """Raises UserError, with the reason, where it cannot be narrowed."""
    if isinstance(tower.stream, str):
        raise UserError(f"the tower {tower.name} cannot be narrowed: {tower.stream}.")
    return tower.stream


def streams(structure: Structure) -> dict[str, Stream]:
    """TOWER.width -> stream, of the towers that have one."""
    return {key_of_width(t): t.stream for t in structure.towers if isinstance(t.stream, Stream)}


# Cost ----------------------------------------------------------------------------------------------------------------


def entries_left(structure: Structure, keep: Mapping[str, Tensor]) -> int:
    """Entries of the prunable set that a cut leaves: of each matrix of a block that stays, kept rows times kept
    columns. keep: as of a cut; what it does not name stays whole."""
    owners = {site.name: site.slices for site in structure.sites} | {k: s.slices for k, s in streams(structure).items()}
    gone: dict[tuple[str, int], Tensor] = {}
    blocks = {key_of(tower): tower for tower in structure.towers}
    dropped = {
        name
        for key, tower in blocks.items()
        if key in keep
        for number in set(range(len(tower.blocks))) - set(keep[key].tolist())
        for site in tower.blocks[number].sites
        for name in site.matrices
    }
    for name, kept in keep.items():
        for part in owners[name] if name not in blocks else ():
            away = torch.ones(part.index.shape[0], dtype=torch.bool)
            away[kept] = False
            flags = gone.setdefault((part.param, part.dim), torch.zeros(part.shape[part.dim], dtype=torch.bool))
            flags[part.index[away].flatten()] = True
    total = 0
    for name, shape in structure.matrices.items():
        if name in dropped:
            continue
        rows, columns = (n - int(gone[name, dim].sum()) if (name, dim) in gone else n for dim, n in enumerate(shape))
        total += rows * columns
    return total


def choose_width(
    structure: Structure, importance: Mapping[str, Tensor], fraction: float, multiple_of: int = 1
) -> dict[str, Tensor]:
    """The dimensions that stay: every stream that `importance` ranks keeps the same share, as many as bring what is
    removed nearest to `fraction` of the prunable set. Of equal importance the later one goes first.

    importance: TOWER.width -> (width,), larger = more important. Raises UserError, naming the reachable maximum.
    """
    order = {key: score.double().sort(descending=True, stable=True).indices for key, score in importance.items()}

    def kept(share: float) -> dict[str, Tensor]:
        return {k: o[: rounded(len(o) * share, len(o), multiple_of)].sort().values for k, o in order.items()}

    return nearest_share(structure, kept, fraction, multiple_of)


def nearest_share(
    structure: Structure, kept: Callable[[float], Mapping[str, Tensor]], fraction: float, multiple_of: int = 1
) -> dict[str, Tensor]:
    """kept(share) for the share in (0, 1] that removes what is nearest to `fraction` of the prunable set; more is kept
    the larger it is. Raises UserError where the least share does not remove as much. multiple_of: what kept(share)
    rounds to, for its sentence."""
    target, low, high = (1 - fraction) * structure.size, 0.0, 1.0
    least = entries_left(structure, kept(low))
    if least > target + structure.size * NEAR:
        rounding = "" if multiple_of == 1 else f" with multiple_of={multiple_of}"
        raise UserError(
            f"sparsity {fraction:.4g} cannot be reached by what is narrowed here{rounding}: at most "
            f"{1 - least / structure.size:.4f}."
        )
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if entries_left(structure, kept(middle)) < target else (low, middle)
    ends = [dict(kept(low)), dict(kept(high))]
    return min(ends, key=lambda one: abs(entries_left(structure, one) - target))


def rounded(count: float, units: int, multiple_of: int) -> int:
    """The nearest multiple, between one (or `multiple_of`) and all."""
    return max(1, min(units, max(multiple_of, round(count / multiple_of) * multiple_of)))


# Cut -----------------------------------------------------------------------------------------------------------------


def narrow_stream(net: nn.Module, tower: Tower, kept: Tensor, cut_parameter: Callable[..., None]) -> None:
    """Keep only these dimensions. cut_parameter(net, slices, kept): removes them from one parameter."""
    stream = stream_of(tower)
    if not len(kept):
        raise UserError(f"the tower {tower.name} cannot lose its whole width: one dimension has to stay.")
    for part in stream.slices:
        cut_parameter(net, [_as_it_is(net, part)], kept)
    for path in stream.norms:
        norm: Any = net.get_submodule(path)
        if hasattr(norm, "normalized_shape"):
            norm.normalized_shape = (len(kept),)
    names = {id(net.get_parameter(part.param)) for part in stream.slices}
    for module in net.modules():
        if id(getattr(module, "weight", None)) in names:
            tell(module)
    if stream.after_cut is not None:
        stream.after_cut(net, kept)


def _as_it_is(net: nn.Module, part: Slice) -> Slice:
    """The slice in the shape that cuts of sites have left of its other dimension."""
    return Slice(part.param, tuple(net.get_parameter(part.param).shape), part.dim, part.index)


def tell(module: Any) -> None:
    """Write the sizes of a module's parameters into the attributes that repeat them."""
    weight = module.weight
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = weight.shape[1]
    elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        module.out_channels = weight.shape[0]


# Gates ---------------------------------------------------------------------------------------------------------------


class WidthGates:
    """One gate a dimension, 1.0 at first: `value[TOWER.width]` is a leaf tensor of shape (width,)."""

    def __init__(self, net: nn.Module, structure: Structure, keys: Sequence[str] | None = None) -> None:
        self.net, self.streams = net, {k: s for k, s in streams(structure).items() if keys is None or k in keys}
        parameter = next(net.parameters())
        self.value: dict[str, Tensor] = {}
        self._gated: list[nn.Module] = []
        first = {key_of_width(tower): tower.blocks[0].path for tower in structure.towers}
        for key, stream in self.streams.items():
            gate = torch.ones(stream.width, device=parameter.device, dtype=parameter.dtype, requires_grad=True)
            self.value[key] = gate
            for path in dict.fromkeys(stream.writers):
                module = net.get_submodule(path)
                self._install(module, _gated_writer(module, gate))
            for path in dict.fromkeys(stream.norms):
                module = net.get_submodule(path)
                self._install(module, _gated_norm(module, gate))
            block = net.get_submodule(first[key])
            self._install(block, _cleared(block, gate))

    def _install(self, module: nn.Module, forward: Callable[..., Tensor]) -> None:
        module.forward = forward
        self._gated.append(module)

    def set(self, values: Mapping[str, Tensor]) -> None:
        """Write gate values."""
        with torch.no_grad():
            for name, value in values.items():
                self.value[name].copy_(value)

    def remove(self) -> None:
        """Take the gates off again."""
        for module in self._gated:
            module.__dict__.pop("forward", None)
        self._gated = []


def _gated_writer(module: nn.Module, gate: Tensor) -> Callable[..., Tensor]:
    forward, convolution = module.forward, isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)

    def gated(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        output: Tensor = forward(x, *args, **kwargs)
        factor = gate.to(output.device, output.dtype)
        return output * (factor.view(-1, *[1] * (output.ndim - 2)) if convolution else factor)

    return gated


def _gated_norm(norm: nn.Module, gate: Tensor) -> Callable[[Tensor], Tensor]:
    def gated(x: Tensor) -> Tensor:
        kept = gate.detach().nonzero().flatten().to(x.device)
        narrowed: Tensor = _over(norm, kept)(x[..., kept])
        output = narrowed.new_zeros(*x.shape)
        output[..., kept] = narrowed * gate.to(narrowed.device, narrowed.dtype)[kept]
        return output

    return gated


def _cleared(block: nn.Module, gate: Tensor) -> Callable[..., Any]:
    """The first block takes zeros where a gate is 0: tables that are added to the tokens have no gate of their own, and
    a tower without a norm before its reader would show them."""
    forward = block.forward

    def cleared(*args: Any, **kwargs: Any) -> Any:
        name = None if args else next(iter(kwargs))
        hidden: Tensor = args[0] if name is None else kwargs[name]
        hidden = hidden * (gate.detach() != 0).to(hidden.device, hidden.dtype)
        return forward(hidden, *args[1:], **kwargs) if name is None else forward(**{**kwargs, name: hidden})

    return cleared


def _over(norm: nn.Module, kept: Tensor) -> nn.Module:
    """The norm as it is after a cut: over some of its entries, on the same parameters."""
    small: Any = copy(norm)
    small.__dict__.pop("forward", None)
    small.__dict__["_parameters"] = {k: None if p is None else p[kept] for k, p in norm._parameters.items()}
    if hasattr(norm, "normalized_shape"):
        small.normalized_shape = (len(kept),)
    module: nn.Module = small
    return module
