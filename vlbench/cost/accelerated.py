"""2:4 for real: `vlbench time RUN --accelerate=semi_structured` verifies a run's masks and times its linear layers.

Each distinct shape is timed once, dense and with torch's semi-structured tensors, at the number of rows that the
stated sample gives it in batches of the saturated throughput: the gain grows with the rows, and few are slower than
dense. Where the device has no such kernels the masks are verified all the same, and the note says why nothing is timed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ..compression.semi_structured import UNMEASURED, Speed, is_two_of_four, semi_structured_speed, unsupported
from ..errors import RunFailed, UserError
from ..model import Model
from .sample import infer, stated
from .timing import How

KINDS = ("semi_structured",)
PATTERN = "2:4"


def refuse_pattern(kind: str, pattern: str, run: str) -> None:
    """Raise UserError for an acceleration that is not there, and for a run of another pattern."""
    if kind not in KINDS:
        raise UserError(f"--accelerate={kind} should be {' or '.join(KINDS)}.")
    if PATTERN not in pattern.split("+"):
        raise UserError(
            f"--accelerate={kind} needs a run with sparsity=2:4, and {run} is {pattern}: leave it out for this run."
        )


def accelerated(model: Model, masked: Iterable[str], capability: str, how: How, batch: int) -> dict[str, Any]:
    """What cost.json says of the run's 2:4 matrices. masked: their names; batch: samples at a time. Raises RunFailed
    naming a matrix that is not 2:4."""
    net = model.net
    names = sorted(masked)
    for name in names:
        if not is_two_of_four(net.get_parameter(name)):
            raise RunFailed(f"{name} does not keep 2 of every 4 columns, though its run says {PATTERN}: prune again.")
    entry: dict[str, Any] = {"kind": "semi_structured", "matrices": len(names), "note": ""}
    reasons = [unsupported(net.get_parameter(name)) for name in names]
    if all(reasons):
        return {**entry, "note": f"{UNMEASURED}: {', '.join(sorted(set(reasons)))}"}
    dtype = torch.bfloat16 if how.precision == "bf16" else torch.float16
    rows = _rows(model, names, capability, batch)
    shapes = Counter((*net.get_parameter(name).shape, rows[name]) for name in names)
    examples = {(*net.get_parameter(name).shape, rows[name]): name for name in names}
    linears = [
        _row(semi_structured_speed(net.get_parameter(examples[key]), key[2], dtype), key, count)
        for key, count in sorted(shapes.items())
    ]
    timed = [linear for linear in linears if "dense_ms" in linear]
    sums = [sum(linear["count"] * linear[what] for linear in timed) for what in ("dense_ms", "sparse_ms")]
    ratio = {"ratio": round(sums[0] / sums[1], 3)} if timed else {}
    return {**entry, "dtype": str(dtype).removeprefix("torch."), "batch": batch, **ratio, "linears": linears}


def line(entry: dict[str, Any]) -> str:
    """One line for people."""
    if "ratio" not in entry:
        return f"{entry['matrices']} matrices: {entry['note'] or UNMEASURED}"
    return f"{entry['matrices']} matrices verified, their linears x{entry['ratio']:.2f} in {entry['dtype']}"


def _row(speed: Speed, key: tuple[int, ...], count: int) -> dict[str, Any]:
    shape = {"rows": key[0], "columns": key[1], "tokens": key[2], "count": count}
    if speed.dense is None or speed.sparse is None:
        return {**shape, "note": speed.note}
    return {**shape, "dense_ms": round(speed.dense, 5), "sparse_ms": round(speed.sparse, 5)}


def _rows(model: Model, names: Iterable[str], capability: str, batch: int) -> dict[str, int]:
    """Matrix -> rows of its largest input when a batch of the stated sample is inferred."""
    rows = dict.fromkeys(names, 0)
    hooks = []
    for name in rows:

        def note(_: nn.Module, args: tuple[torch.Tensor, ...], name: str = name) -> None:
            rows[name] = max(rows[name], args[0].numel() // args[0].shape[-1])

        hooks.append(model.net.get_submodule(name.rpartition(".")[0]).register_forward_pre_hook(note))
    try:
        with torch.inference_mode():
            infer(model, capability, stated(capability).make(model, batch, False))
    finally:
        for hook in hooks:
            hook.remove()
    return rows
