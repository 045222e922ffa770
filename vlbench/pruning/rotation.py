"""Turning the residual stream of a tower without changing what it computes (SliceGPT, Ashkboos et al. 2024, arXiv
2401.15024, "computational invariance").

    RMSNorm(x Q) = RMSNorm(x) Q  for an orthogonal Q, where the norm has no weights of its own. So
    1. a norm's weight and bias go into the Linears that read it:  W <- W diag(g),  b <- b + W beta
    2. a LayerNorm also subtracts the mean: what writes to the stream does it instead (W <- W - mean over rows), and
       the norm becomes an RMS norm
    3. what writes is turned, W <- Q^T W and b <- Q^T b, and what reads, W <- W Q

This holds where every norm stands before Linears, and what is added to the stream is not normalised: in pre-norm
towers. Which norm a Linear reads is seen in one forward pass, by the memory of the tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..structure import Slice, Stream, Tower

DAMPING = 0.01  # of the mean of the diagonal, added to it, as in the code

Run = Callable[[], Any]


class TurnedNorm(nn.LayerNorm):
    """x / sqrt(sum of x^2 / full + eps), in the place of a LayerNorm whose mean is taken elsewhere. full: the width of
    the stream before anything was sliced off, by which the published code divides for good."""

    full: int

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        length = torch.rsqrt(wide.square().sum(-1, keepdim=True) / self.full + self.eps)
        return (wide * length).to(x.dtype) * self.weight + self.bias


def turn_norm(net: nn.Module, path: str, full: int) -> None:
    """Make a LayerNorm one that subtracts no mean."""
    norm: Any = net.get_submodule(path)
    if type(norm) is not TurnedNorm:
        if not isinstance(norm, nn.LayerNorm) or norm.weight is None or norm.bias is None:
            raise UserError(f"{path} is no LayerNorm with weight and bias, so that it cannot be turned.")
        norm.__class__ = TurnedNorm
    norm.full = full


def subtracts_mean(norm: nn.Module) -> bool:
    """Whether it is a LayerNorm, and none that was turned before."""
    return isinstance(norm, nn.LayerNorm) and not isinstance(norm, TurnedNorm)


# The principal directions ------------------------------------------------------------------------------------------


def second_moment(states: Iterable[Tensor], masks: Iterable[Tensor] | None = None) -> Tensor:
    """(width, width) sum of x^T x over all tokens of states (..., width), in float64; masks (...): 0 = padding."""
    total: Tensor | None = None
    for x, mask in zip(states, repeat(None) if masks is None else masks, strict=False):
        wide = x.double() if mask is None else x.double() * mask[..., None]
        flat = wide.flatten(0, -2)
        total = flat.T @ flat if total is None else total + flat.T @ flat
    assert total is not None
    return total


def principal(moment: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, falling, and the directions as columns of Q, of a second moment that is damped first."""
    damped = moment + DAMPING * moment.diagonal().mean() * torch.eye(len(moment), dtype=moment.dtype).to(moment.device)
    values, vectors = torch.linalg.eigh(damped)
    return values.flip(0), vectors.flip(1)


# What reads and writes a stream ------------------------------------------------------------------------------------


@dataclass
class Plan:
    """A tower that can be turned. readers: norm -> the Linears behind it; raw: Linears that read the stream as it is.
    mean: whether its norms subtract a mean."""

    tower: Tower
    stream: Stream
    readers: dict[str, list[str]] = field(default_factory=dict)
    raw: list[str] = field(default_factory=list)
    mean: bool = False


def plan(net: nn.Module, tower: Tower, run: Run) -> Plan:
    """How a tower is turned. run: one forward pass. Raises UserError, with the reason, where it cannot be."""
    if isinstance(tower.stream, str):
        raise UserError(f"the tower {tower.name} cannot be turned: {tower.stream}.")
    made = Plan(tower, tower.stream)
    _refuse_factors(net, tower, tower.stream)
    linears = _readers(net, tower.stream)
    with _seen(net, [*tower.stream.norms, *linears, *(b.path for b in tower.blocks)]) as seen:
        run()
    stream = {_memory(x) for block in tower.blocks for call in seen[block.path] for x in call}
    for path in tower.stream.norms:
        if stream & {_memory(output) for _, output in seen[path]}:
            raise UserError(
                f"the tower {tower.name} cannot be turned: what its norm {path} gives is the stream itself, whose "
                "dimensions it weighs one by one."
            )
        made.readers[path] = []
    for path in linears:
        taken = [first for first, _ in seen[path]]
        behind = [n for n in made.readers if any(_read(x, output) for x in taken for _, output in seen[n])]
        if len(behind) > 1:
            raise UserError(f"the tower {tower.name} cannot be turned: {path} reads several of its norms.")
        (made.readers[behind[0]] if behind else made.raw).append(path)
    if idle := [path for path, readers in made.readers.items() if not readers]:
        raise UserError(
            f"the tower {tower.name} cannot be turned: no Linear of its own reads its norm {idle[0]} (a head that is "
            "the matrix of the embeddings is none)."
        )
    kinds = {subtracts_mean(net.get_submodule(path)) for path in tower.stream.norms}
    if len(kinds) > 1 or (True in kinds and made.raw):
        raise UserError(
            f"the tower {tower.name} cannot be turned: some of what reads it subtracts the mean, and some does not."
        )
    made.mean = True in kinds
    _refuse_shared(net, made)
    return made


def _refuse_factors(net: nn.Module, tower: Tower, stream: Stream) -> None:
    """A factor of a branch (layer scale) weighs the dimensions one by one, behind what writes them."""
    inside = tuple(f"{block.path}." for block in tower.blocks)
    plain = {*stream.norms, *stream.writers}
    for part in stream.slices:
        owner = part.param.rpartition(".")[0]
        if len(part.shape) == 1 and part.param.startswith(inside) and owner not in plain:
            raise UserError(f"the tower {tower.name} cannot be turned: {part.param} weighs its dimensions one by one.")


def _refuse_shared(net: nn.Module, made: Plan) -> None:
    """A Linear behind a norm takes the norm's weight in, which a matrix that is used elsewhere, too, cannot."""
    owners: dict[int, list[str]] = {}
    for name, module in net.named_modules():
        if isinstance(weight := getattr(module, "weight", None), Tensor):
            owners.setdefault(id(weight), []).append(name)
    for path in (path for readers in made.readers.values() for path in readers):
        if others := [o for o in owners[id(net.get_submodule(path).weight)] if o != path]:
            raise UserError(f"the tower {made.tower.name} cannot be turned: {path} and {others[0]} are one matrix.")


def _readers(net: nn.Module, stream: Stream) -> list[str]:
    """Linears whose columns are the stream's."""
    names = [part.param.removesuffix(".weight") for part in stream.slices if part.dim == 1 and len(part.shape) == 2]
    return [name for name in dict.fromkeys(names) if isinstance(_module(net, name), nn.Linear)]


def _module(net: nn.Module, path: str) -> nn.Module | None:
    try:
        return net.get_submodule(path)
    except AttributeError:
        return None


@contextmanager
def _seen(net: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, list[tuple[Any, Any]]]]:
    """Path -> (first input, output) of every call inside. They are kept, so that no memory is given to two of them."""
    seen: dict[str, list[tuple[Any, Any]]] = {path: [] for path in paths}

    def note(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            first = args[0] if args else next(iter(kwargs.values()))
            seen[path].append((first, output[0] if isinstance(output, tuple) else output))

        return hook

    handles = [net.get_submodule(p).register_forward_hook(note(p), with_kwargs=True) for p in seen]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _memory(value: Any) -> int:
    return int(value.untyped_storage().data_ptr()) if isinstance(value, Tensor) else id(value)


def _read(taken: Any, given: Any) -> bool:
    """Whether what a Linear takes is what a norm gives: the same memory, or a copy of some of its tokens."""
    if _memory(taken) == _memory(given):
        return True
    if not isinstance(taken, Tensor) or not isinstance(given, Tensor) or taken.shape[-1] != given.shape[-1]:
        return False
    rows, tokens = given.flatten(0, -2), taken.flatten(0, -2)
    return all(bool((rows == token).all(1).any()) for token in (tokens[0], tokens[-1]))


# Folding and turning -----------------------------------------------------------------------------------------------


@dataclass
class Turned:
    """What a tower's parameters become. weights: new values; biases: Linear -> what is added to its bias."""

    weights: dict[str, Tensor]
    biases: dict[str, Tensor]


@torch.no_grad()
def folded(net: nn.Module, made: Plan) -> Turned:
    """Steps 1 and 2, in float64."""
    weights = {part.param: net.get_parameter(part.param).detach().double() for part in made.stream.slices}
    columns = {part.param: part for part in made.stream.slices if part.dim == 1}
    biases: dict[str, Tensor] = {}
    for norm, readers in made.readers.items():
        owned = dict(net.get_submodule(norm).named_parameters())
        gain, shift = owned.get("weight"), owned.get("bias")
        for path in readers:
            name = f"{path}.weight"
            if shift is not None:
                biases[path] = weights[name] @ spread(shift.detach().double(), columns[name])
            if gain is not None:
                weights[name] = weights[name] * spread(gain.detach().double(), columns[name])
        for key, parameter in owned.items():
            weights[f"{norm}.{key}"] = torch.full_like(parameter, float(key == "weight"), dtype=torch.float64)
    if made.mean:
        of_norms = {f"{norm}.{key}" for norm in made.readers for key in ("weight", "bias")}
        reads = {f"{path}.weight" for readers in made.readers.values() for path in readers}
        for part in made.stream.slices:
            if part.param not in of_norms | reads:
                weights[part.param] = along(weights[part.param], part, lambda x: x - x.mean(0, keepdim=True))
    return Turned(weights, biases)


@torch.no_grad()
def turned(weights: Mapping[str, Tensor], made: Plan, q: Tensor) -> dict[str, Tensor]:
    """Step 3. q: (width, width), the new directions as columns."""
    new, of_norms = dict(weights), {f"{norm}.{key}" for norm in made.readers for key in ("weight", "bias")}
    for part in made.stream.slices:
        if part.param not in of_norms:
            new[part.param] = along(new[part.param], part, lambda x: torch.tensordot(q.to(x).T, x, 1))
    return new


def spread(values: Tensor, part: Slice) -> Tensor:
    """(width,) values of the dimensions -> one for each index of the parameter's dimension."""
    row = torch.empty(part.shape[part.dim], dtype=values.dtype, device=values.device)
    index = part.index.to(values.device)
    row[index] = values[:, None].expand(index.shape)
    return row


def along(tensor: Tensor, part: Slice, act: Callable[[Tensor], Tensor]) -> Tensor:
    """act: (width, ...) -> (width, ...), on every token side by side of a parameter's dimension."""
    moved = tensor.movedim(part.dim, 0).clone()
    for column in part.index.T.to(tensor.device):
        moved[column] = act(moved[column])
    return moved.movedim(0, part.dim)
