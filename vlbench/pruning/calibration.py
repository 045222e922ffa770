"""Block-by-block calibration: what a block is called with is captured, and called again block after block.

Arguments are captured for every block: the originals replay block 0's for all, which is wrong for T5, whose later
blocks get the position bias that block 0 computed (relative output error 0.37 on a three-block toy).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import RunFailed
from ..nn.attend import Shared
from ..structure import Block, Structure, Tower


@dataclass(frozen=True)
class Call:
    """One call of a block. hidden: its input (args[0]); the other arguments are kept by reference."""

    hidden: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor


def capture(net: nn.Module, block: Block, run: Callable[[], Any]) -> list[Call]:
    """All calls of `block` in run(), in order (a block may be called several times: two images, two text modes).

    Raises ValueError where a call carries a key-value cache: replayed after a change it would read the old keys.
    """
    return capture_all(net, [block], run)[0]


def capture_all(net: nn.Module, blocks: Sequence[Block], run: Callable[[], Any]) -> list[list[Call]]:
    """The calls of several blocks in one run(): a list a block."""
    calls: list[list[Call]] = [[] for _ in blocks]
    hooks = [
        net.get_submodule(block.path).register_forward_hook(_noter(block, found), with_kwargs=True)
        for block, found in zip(blocks, calls, strict=True)
    ]
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _noter(block: Block, calls: list[Call]) -> Callable[..., None]:
    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        cache = next((k for k in ("past_key_values", "past_key_value") if kwargs.get(k) is not None), None)
        if cache is not None:
            raise ValueError(f"{block.path} is called with {cache}: run the model with use_cache=False")
        named = "" if args else next(iter(kwargs))
        hidden = args[0] if args else kwargs[named]
        rest = {k: _uncached(v) for k, v in kwargs.items() if k != named}
        calls.append(Call(hidden.detach(), tuple(map(_uncached, args[1:])), rest, hidden_of(output).detach()))

    return note


def replay(net: nn.Module, block: Block, call: Call, hidden: Tensor | None = None) -> Tensor:
    """The block's output for a captured call, with another input where `hidden` is given."""
    with torch.no_grad():
        x = call.hidden if hidden is None else hidden
        return hidden_of(net.get_submodule(block.path)(x, *call.args, **call.kwargs))


def hidden_of(output: Any) -> Tensor:
    """The hidden states of a block's output: itself, or the first of a tuple."""
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found


def _uncached(value: Any) -> Any:
    """Shared states remember the keys they were projected to; a replay after pruning must project them anew."""
    if isinstance(value, Shared):
        return value.uncached()
    return tuple(map(_uncached, value)) if isinstance(value, tuple) else value


@dataclass
class Statistics:
    """What calibration saw at the input of one matrix. square_sum: (in,), over all tokens; samples: batch items."""

    square_sum: Tensor
    samples: int = 0

    @property
    def norm(self) -> Tensor:
        """(in,) root of the mean over samples of the tokens' summed squares: Wanda's ||X_j||_2 up to a constant."""
        return (self.square_sum / max(1, self.samples)).sqrt()


Prune = Callable[[Block, Mapping[str, Statistics]], None]
Hidden = list[list[Tensor]]  # a list of calls a batch


def calibrate(
    net: nn.Module,
    structure: Structure,
    runs: Sequence[Callable[[], Any]],
    prune: Prune,
    *,
    propagate: Literal["pruned", "dense"] = "pruned",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Walk the towers in order of data flow; prune(block, statistics of its matrices) once for every block.

    All statistics of a block come from one pass with the block still dense. propagate "pruned": the next block sees the
    pruned block's output (Wanda, SparseGPT); "dense": the dense one's. Each tower is captured anew, so that it sees the
    towers before it pruned. runs: one closure a calibration batch, each without padding (one sample is the safe size).
    """
    done, total = 0, sum(len(tower.blocks) for tower in structure.towers)
    for tower in structure.towers:
        batches = [_capture_tower(net, tower, run) for run in runs]
        hidden = [[call.hidden for call in batch[0]] for batch in batches]
        for index, block in enumerate(tower.blocks):
            calls = [batch[index] for batch in batches]
            with collected(net, block) as statistics:
                dense = _forward(net, block, calls, hidden)
            refuse_damaged(block, statistics)
            prune(block, statistics)
            if propagate == "dense":
                hidden = dense
            elif index + 1 < len(tower.blocks):
                hidden = _forward(net, block, calls, hidden)
            done += 1
            progress(done, total)


def _capture_tower(net: nn.Module, tower: Tower, run: Callable[[], Any]) -> list[list[Call]]:
    """The calls of every block of a tower in one run; of the hidden states only the first block's inputs are kept."""
    none = torch.empty(0)
    first, *others = capture_all(net, tower.blocks, run)
    first = [replace(call, output=none) for call in first]
    return [first, *([replace(call, hidden=none, output=none) for call in calls] for calls in others)]


def _forward(
    net: nn.Module, block: Block, calls: Sequence[Sequence[Call]], hidden: Sequence[Sequence[Tensor]]
) -> Hidden:
    """The block's output for every call of every batch."""
    return [
        [replay(net, block, call, x) for call, x in zip(batch, inputs, strict=True)]
        for batch, inputs in zip(calls, hidden, strict=True)
    ]


@contextmanager
def collected(net: nn.Module, block: Block) -> Iterator[dict[str, Statistics]]:
    """Statistics at the input of each of the block's matrices, of every call inside the with-statement. Projections
    of one input (q, k, v) have one accumulator each: their modules are called one by one."""
    found: dict[str, Statistics] = {}
    hooks = []
    for name in dict.fromkeys(m for site in block.sites for m in site.matrices):
        module = net.get_submodule(name.rpartition(".")[0])
        columns = net.get_parameter(name).shape[1]
        found[name] = Statistics(torch.zeros(columns, dtype=torch.float64, device=net.get_parameter(name).device))

        def add(_: nn.Module, args: tuple[Tensor, ...], own: Statistics = found[name]) -> None:
            x = args[0].detach()
            own.square_sum += x.reshape(-1, x.shape[-1]).double().square().sum(0)
            own.samples += x.shape[0] if x.ndim > 2 else 1

        hooks.append(module.register_forward_pre_hook(add))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def refuse_damaged(block: Block, statistics: Mapping[str, Statistics]) -> None:
    """Raise RunFailed naming the block and matrix whose inputs are not finite."""
    for name, seen in statistics.items():
        if not bool(torch.isfinite(seen.square_sum).all()):
            raise RunFailed(f"the inputs of {name} (block {block.path}) are not finite: weights or data are damaged.")
