"""Bringing a large model to the GPU: weights in 16 bits where they are asked for, and split over several by accelerate
where one is too small."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ..errors import UserError
from ..machine.device import computing_device, count, free_bytes

# From here precision=bf16 holds the weights in 16 bits as well, as the checkpoints of such models are published; below
# it does so where the checkpoint has them in bfloat16, and else only computes in them.
LARGE = 1_000_000_000
SPARE = 1.2  # of the weights' size: what activations and caches of a batch need beside them


def place(net: nn.Module, blocks: Sequence[nn.Module], precision: str) -> None:
    """To the device of this process. blocks: what must not be split. Raises UserError with the memory
    needed where the model does not fit and cannot be split."""
    stored = any(p.dtype == torch.bfloat16 for p in net.parameters())
    if precision == "bf16" and (stored or is_large(net)):
        halve(net)
    device = computing_device()
    needed = SPARE * size_of(net)
    free = free_bytes(device)
    if free is None or needed <= free:
        net.to(device)
        return
    number = count()
    advice = "" if precision == "bf16" else " use precision=bf16, or"
    need = f"this model needs {needed / 2**30:.2g} GiB of GPU memory, and {free / 2**30:.2g} GiB are free:{advice}"
    if number < 2 or torch.distributed.is_initialized():
        raise UserError(f"{need} one worker with several GPUs, over which it is split.")
    try:
        split(net, blocks, {n: int((free_bytes(torch.device(device.type, n)) or 0) / SPARE) for n in range(number)})
    except ImportError:
        raise UserError(f"{need} pip install accelerate, which splits it over the {number} GPUs.") from None


def is_large(net: nn.Module) -> bool:
    return sum(p.numel() for p in net.parameters()) >= LARGE


def widen_to_train(net: nn.Module) -> None:
    """Parameters of a network below LARGE in float32, if some of bfloat16 are to be trained: steps of an optimiser are
    smaller than the 8 bits of a bfloat16 can tell."""
    narrow = [p for p in net.parameters() if p.dtype == torch.bfloat16]
    if any(p.requires_grad for p in narrow) and not is_large(net):
        for parameter in narrow:
            parameter.data = parameter.data.float()


def halve(net: nn.Module) -> None:
    """Parameters in bfloat16. Buffers keep their type: the angles of rotary positions need it."""
    for parameter in net.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.bfloat16)


def size_of(net: nn.Module) -> int:
    """Bytes of parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in (*net.parameters(), *net.buffers()))


def split(net: nn.Module, blocks: Sequence[nn.Module], room: dict[int | str, int]) -> None:
    """Modules to devices, in order, so many bytes to each. Raises ImportError without accelerate, and UserError where
    there is no room for all."""
    from accelerate import dispatch_model, infer_auto_device_map

    whole = sorted({type(block).__name__ for block in blocks})
    places = infer_auto_device_map(net, max_memory=room, no_split_module_classes=whole)
    if "disk" in places.values():
        gib = sum(room.values()) / 2**30
        raise UserError(
            f"this model has {size_of(net) / 2**30:.2g} GiB, and there is room for {gib:.2g}: use more GPUs."
        )
    dispatch_model(net, places, skip_keys=getattr(net, "_skip_keys_device_placement", None))
