"""What a link leaves behind is exactly its state: a model computes the same before it is saved and after it is opened.

A hook, a patched forward or a buffer that is not registered changes what the model computes and is not saved: without
this check the run would go on with a model that the method did not make, and report its numbers as the method's.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules

from ..cost.sample import stated, train
from ..errors import RunFailed, UserError
from ..model import Model

# Of the largest output. Measured on the mini families: 0.0 after every method; kernels may order sums otherwise where
# a tensor lies in memory another way.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
SAMPLES = 2
CALLS = ("forward", "__call__", "_call_impl")  # what a module's class computes with
EVERYWHERE = tuple(name for name in vars(torch_modules) if name.startswith("_global_") and name.endswith("_hooks"))


def outputs_of(model: Model, capability: str) -> list[Tensor]:
    """Everything the model computes of the capability's stated sample (noise and fixed texts), on the CPU: the states
    of its images and what its training-style forward pass gives. Of a model that cannot be given the sample (a family
    without a tokenizer), the states alone."""
    training = model.net.training
    model.net.eval()
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            torch.manual_seed(0)  # re-ranking draws its negatives
            batch = stated(capability).make(model, SAMPLES, True)
            computed = [model.encode(batch.images), train(model, capability, batch)]
    except UserError:
        return []
    finally:
        model.net.train(training)
    return [tensor.detach().float().cpu() for tensor in _tensors(computed)]


def refuse_other(before: Sequence[Tensor], after: Sequence[Tensor], link: str, dtype: torch.dtype) -> None:
    """Raise RunFailed, naming the link, where the model that was opened computes something else than what was saved."""
    for one, other in zip(before, after, strict=True):
        scale = float(one.abs().max()) if one.numel() else 0.0
        if one.shape != other.shape:
            difference = "other shapes"
        else:
            off = float((one - other).abs().max()) if one.numel() else 0.0
            if off <= TOLERANCE.get(dtype, 1e-4) * max(scale, 1e-6):
                continue
            difference = f"a difference of {off:.3g} where the largest output is {scale:.3g}"
        raise RunFailed(
            f"{link} leaves something behind that is not saved: the model that was opened again gives {difference}. A "
            "method changes a model by job.changes and training alone; hooks, patched forwards and buffers that are "
            "not registered are lost. What acts at run time is declared with job.changes.at_run_time() and replayed."
        )


def process_wide(net: nn.Module) -> dict[Hashable, Any]:
    """What acts on every model of this process: hooks of all modules, torch's functions and the forwards of the model's
    classes, by what they belong to. The model that is opened again has them, too, so that outputs cannot tell."""
    acting: dict[Hashable, Any] = {f"{name.strip('_')} of torch": len(vars(torch_modules)[name]) for name in EVERYWHERE}
    acting |= {f"torch.nn.functional.{name}": value for name, value in vars(nn.functional).items() if callable(value)}
    for kind in {base for part in net.modules() for base in type(part).__mro__}:
        acting |= {(kind, name): vars(kind)[name] for name in CALLS if name in vars(kind)}  # names of classes repeat
    return acting


def refuse_process_wide(before: Mapping[Hashable, Any], net: nn.Module, link: str) -> None:
    """Raise RunFailed, naming the link, where it changed what acts on every model of this process."""
    after = process_wide(net)
    changed = [what for what, value in before.items() if what in after and after[what] is not value]
    if changed:
        name = ".".join((changed[0][0].__name__, changed[0][1])) if isinstance(changed[0], tuple) else changed[0]
        raise RunFailed(
            f"{link} changes {name} for every model of this process, which is saved with none. A method changes "
            "its own model, by job.changes and training alone; what acts at run time is declared with "
            "job.changes.at_run_time() and replayed."
        )


def _tensors(value: Any) -> Iterator[Tensor]:
    """Every floating-point tensor inside, in a fixed order."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from _tensors(value[key])
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
    elif hasattr(value, "__dataclass_fields__"):
        yield from _tensors([getattr(value, name) for name in value.__dataclass_fields__])
