"""What a checkpoint declares is looked at before anything is allocated for it.

A file of a kilobyte may declare 10^12 elements: by sizes that its bytes do not fill, by one number that is repeated
(a stride of 0), or by a configuration whose network nobody could hold.
"""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import UserError

# How much larger the network of a checkpoint may be when it is built: one that was cut to a tenth is built whole first,
# and weights are drawn twice; besides, there are masks and positions.
TIMES, BESIDE = 100, 10**7
# Tensors that a network may be made of. The largest published ones have 3,000; a depth of 10^7 would be built for hours
# before its elements fill the memory.
TENSORS = 20_000


def declared(file: Path, load: Callable[[], Mapping[str, Any]]) -> dict[str, int]:
    """Tensor -> elements, by the file's own account. load: reads a file that is no safetensors file; here it allocates
    nothing. Empty where the file is damaged: whoever reads it tells how."""
    if file.suffix == ".safetensors":
        return _in_header(file)
    try:
        with FakeTensorMode():
            tensors = load()
    except Exception:
        return {}
    return {key: max(v.numel(), v.untyped_storage().nbytes() // v.element_size()) for key, v in tensors.items()}


def _in_header(file: Path) -> dict[str, int]:
    try:
        return {key: math.prod(entry["shape"]) for key, entry in _header(file).items()}
    except (ValueError, TypeError, LookupError, AttributeError):
        return {}


def _header(file: Path) -> dict[str, Any]:
    """Of safetensors: eight bytes with the length of a JSON object, {tensor: {"shape": ..., "dtype": ...}}. Empty where
    the file is damaged."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length)) if length < file.stat().st_size else {}
        return {key: entry for key, entry in header.items() if key != "__metadata__"}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def stored_types(file: Path, load: Callable[[], Mapping[str, Any]]) -> set[str]:
    """Types of a file's tensors as safetensors spells them ("F32", "BF16"; of torch's files "BF16" alone is told from
    "other"), by its own account. load: as for `declared`. Empty where the file is damaged."""
    if file.suffix == ".safetensors":
        entries = _header(file).values()
        return {str(entry["dtype"]) for entry in entries if isinstance(entry, dict) and "dtype" in entry}
    try:
        with FakeTensorMode():
            return {"BF16" if tensor.dtype == torch.bfloat16 else "other" for tensor in load().values()}
    except Exception:
        return set()


def refuse_giant(file: Path, elements: Mapping[str, int]) -> None:
    """Raise UserError where a tensor has more elements than the file has bits, or all of them are more than the bytes
    of this machine's memory."""
    size, total = file.stat().st_size, sum(elements.values())
    memory = memory_of_machine()
    largest = max(elements, key=lambda key: elements[key], default="")
    if largest and elements[largest] > 8 * size:
        raise UserError(
            f"{file} is refused: it declares {elements[largest]:,} elements of {largest} and has {size:,} bytes: "
            "it is damaged, or made to fill the memory."
        )
    if total > memory:  # a byte each: no format takes less
        raise UserError(
            f"{file} is refused: it declares {total:,} elements, and this machine has {memory:,} bytes of memory."
        )


def memory_of_machine() -> int:
    """Bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def refuse_bomb(archive: zipfile.ZipFile, file: Path) -> None:
    """Raise UserError where an archive declares more bytes than its file has: torch.save does not compress."""
    declared = sum(entry.file_size for entry in archive.infolist())
    if declared > file.stat().st_size:
        raise UserError(
            f"{file} is refused: it unpacks to {declared:,} bytes and has {file.stat().st_size:,}, and torch.save "
            "packs nothing: it is damaged, or made to fill the memory."
        )


@contextmanager
def bounded(source: Path, elements: int | None = None) -> Iterator[None]:
    """Inside, a network may be built that weights of so many elements fit; without them (those of a pruned network say
    little of the whole one), as many as the memory has bytes. Raises UserError before what is larger is allocated:
    the configuration in `source` is of another model, or made to fill the memory."""
    limit = memory_of_machine() if elements is None else min(TIMES * elements + BESIDE, memory_of_machine())
    other = "that is more than the memory holds" if elements is None else f"its weights have {elements:,}"
    with _Bounded(limit, source, other):
        yield


class _Bounded(TorchDispatchMode):
    """Counts what is made from sizes alone (empty, zeros, randn, arange ...)."""

    def __init__(self, limit: int, source: Path, other: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.limit, self.source, self.other = limit, source, other
        self.made = self.tensors = 0  # elements, and what holds them

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = _made(func, args)
        self.made, self.tensors = self.made + made, self.tensors + bool(made)
        # A rate for every layer (timm's linspace) is unpacked, number by number, before the first layer is built.
        layers = made if func.overloadpacket is torch.ops.aten.linspace else 0
        if max(self.tensors, layers) > TENSORS:
            raise UserError(
                f"{self.source} is refused: the network of its configuration has {TENSORS:,} tensors or more: give the "
                "weights with their own config.json."
            )
        if self.made > self.limit:
            raise UserError(
                f"{self.source} is refused: the network of its configuration has {self.made:,} elements or more, and "
                f"{self.other}: give the weights with their own config.json."
            )
        return func(*args, **(kwargs or {}))


def _made(func: Any, args: Any) -> int:
    """Elements of what an operation makes, 0 for what works on tensors."""
    if not args or isinstance(args[0], Tensor):
        return 0
    if func.overloadpacket in (torch.ops.aten.arange, torch.ops.aten.linspace):
        numbers = [abs(a) for a in args if isinstance(a, (int, float))]
        return int(max(numbers, default=0))
    sizes = args[0] if isinstance(args[0], (list, tuple)) else ()
    return math.prod(sizes) if sizes and all(isinstance(n, int) for n in sizes) else 0
