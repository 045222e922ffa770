"""What a cell needs of a device that is named, in words for `vlbench run --plan --on NAME`.

Seconds are those of the multiplications at the device's full rate: no real run reaches it, and what is decoded, copied
or generated word by word comes on top.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace

import torch

from ..capability import capability_of
from ..cell.cell import Cell
from ..cell.spec import LinkSpec
from ..machine.device import product
from ..training.schedule import Schedule
from .devices import DEVICES, HERE, Device, refuse_unknown
from .forecast import Memory, Step, evaluated, macs, trained

FORWARD, BACKWARD = 1, 2  # passes of a training step, in forward passes
MOST_PARTS = 1024
SIDE = 1024  # of the matrices that tell this machine's rate


def needs(cell: Cell, name: str) -> dict[str, str]:
    """Line -> words. Raises UserError for a device that is not known."""
    refuse_unknown(name)
    device = DEVICES[name] if name != HERE else here()
    rate = device.bf16 if cell.spec.words.precision == "bf16" else device.fp32
    capability = cell.task.capability
    once = macs(cell.spec.model, capability)
    samples, batch = len(cell.samples), min(cell.batch_size, len(cell.samples))
    memory = evaluated(cell.spec.model, capability, batch)
    lines = {
        "on": f"{device.product}, {_gb(device.memory)}, {rate / 1e12:.3g} TFLOP/s ({device.source})",
        "evaluating": f"{_told(memory)}; {_seconds(2 * once * samples / rate)} for {samples} samples",
    }
    lacks = [] if memory.total <= device.memory else [_smaller(cell, batch, device)]
    for link in cell.spec.links:
        if step := step_of(link):
            memory = trained(cell.spec.model, capability, step)
            passes = FORWARD + BACKWARD + (FORWARD if step.checkpointing else 0)
            seconds = 2 * once * passes * step.steps * step.batch * step.parts / rate
            lines[link.entry.name] = f"{_told(memory)}; {_seconds(seconds)} for {step.steps} steps, all weights trained"
            if memory.total > device.memory:
                lacks.append(f"{link.entry.name} does not fit: {_remedy(cell, link, step, memory, device)}")
    return {**lines, "fits": "yes" if not lacks else "; ".join(lacks)}


def here() -> Device:
    """This machine's processor: its memory, and the rate of one product that is measured now."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    fp32, bf16 = (_rate(dtype) for dtype in (torch.float32, torch.bfloat16))
    return Device(product(torch.device("cpu")), memory, fp32, bf16, "one product of matrices, measured now")


def step_of(link: LinkSpec) -> Step | None:
    """The steps of a link that trains; None for one that does not."""
    options = link.options
    if not isinstance(options, Schedule) or not options.steps:
        return None
    parts = options.accumulate
    return Step(options.steps, -(-options.batch_size // parts), parts, options.optimiser, options.checkpointing == "on")


def _remedy(cell: Cell, link: LinkSpec, step: Step, memory: Memory, device: Device) -> str:
    """Words that make it fit: blocks computed again, then parts of a batch where its loss allows them, then both.
    memory: what it takes as it is."""
    if (rest := memory.total - memory.activations) > device.memory:
        return f"weights, gradients and the optimiser alone need {_gb(rest)}"
    capability, name, batch = cell.task.capability, link.entry.name, step.batch * step.parts
    again = replace(step, checkpointing=True)
    counts = [] if capability_of(capability).loss_over_batch else _doubled(step.parts, batch)
    ways = [again, *(replace(one, parts=n, batch=-(-batch // n)) for one in (step, again) for n in counts)]
    for way in ways:
        memory = trained(cell.spec.model, capability, way)
        if memory.total <= device.memory:
            words = [f"{name}.accumulate={way.parts}"] * (way.parts != step.parts)
            words += [f"{name}.checkpointing=on"] * (way.checkpointing and not step.checkpointing)
            return f"{' '.join(words)} needs {_gb(memory.total)}"
    return f"one sample with its blocks computed again needs {_gb(memory.total)}"


def _doubled(parts: int, batch: int) -> list[int]:
    """More parts of a batch, until each is a sample."""
    counts = []
    while parts < min(batch, MOST_PARTS):
        parts = min(2 * parts, batch)
        counts.append(parts)
    return counts


def _smaller(cell: Cell, batch: int, device: Device) -> str:
    """The batch of evaluation that fits."""
    while batch > 1:
        batch //= 2
        memory = evaluated(cell.spec.model, cell.task.capability, batch)
        if memory.total <= device.memory:
            return f"evaluation does not fit: evaluation.batch_size={batch} needs {_gb(memory.total)}"
    return "evaluation does not fit: not with a batch of one sample (precision=bf16, device_map)"


def _told(memory: Memory) -> str:
    parts = {name: size for name, size in vars(memory).items() if size}
    return f"{_gb(memory.total)} ({', '.join(f'{name} {_gb(size)}' for name, size in parts.items())})"


def _gb(size: int) -> str:
    return f"{size / 1e9:.3g} GB"


def _seconds(seconds: float) -> str:
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} hours"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"


def _rate(dtype: torch.dtype) -> float:
    """Operations a second of a product, the best of three."""
    a, best = torch.ones(SIDE, SIDE, dtype=dtype), float("inf")
    for _ in range(3):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return float(2 * SIDE**3 / best)
