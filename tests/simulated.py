"""A device that is simulated on the CPU, for what only an accelerator finds: a tensor on the wrong side, and a wait.

`sim:0` is torch's experimental Python backend for PrivateUse1. A tensor that says it lives there holds one of the CPU
that does the computing. An operation that is given tensors of both sides raises, as CUDA's does; what makes the host
wait for the device, and what it sends there, is counted by the line that asked for it.

The device is registered once a process and is available only inside `simulated()`: other tests keep the CPU.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_flatten, tree_map

NAME = "sim"
ROOT = str(Path(__file__).resolve().parents[1])
# Operations that a CUDA device cannot finish without telling the host a value or a size.
WAITS = {
    "aten._local_scalar_dense", "aten.equal", "aten.nonzero", "aten.masked_select", "aten._unique2", "aten.unique_dim",
    "aten.unique_consecutive",
}  # fmt: skip
COPIES = {"aten._to_copy.default", "aten.copy_.default"}


@dataclass
class Counts:
    """waits: what the host waited for, by operation and line; fetched: copies to the host that it did not wait for;
    sent: tensors that the host sent, by line."""

    fetched: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)

    def clear(self) -> None:
        self.waits.clear()
        self.fetched.clear()
        self.sent.clear()


COUNTS = Counts()
_STATE = {"on": False, "registered": False}


class Simulated(torch.Tensor):
    """A tensor on the simulated device. inner: the CPU's, which has the values."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Simulated:
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=f"{NAME}:0", requires_grad=False,
        )  # fmt: skip
        made.inner = inner
        return made  # type: ignore[no-any-return]

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Simulated({self.inner!r})"

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, *args, **(kwargs or {}))

    def tolist(self) -> Any:  # torch's own reads the storage, which is empty here
        _count(COUNTS.waits, "tolist")
        return self.inner.tolist()

    def untyped_storage(self) -> Any:  # whether two tensors share their memory
        return self.inner.untyped_storage()

    def __deepcopy__(self, memo: dict[int, Any]) -> Simulated:
        if id(self) not in memo:
            made = Simulated(self.inner.detach().clone())
            if isinstance(self, torch.nn.Parameter):
                made = torch.nn.Parameter(made, self.requires_grad)  # type: ignore[assignment]
            memo[id(self)] = made.requires_grad_(self.requires_grad)
        return memo[id(self)]

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(_index(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_index(index), value)

    @property
    def data(self) -> torch.Tensor:
        return self.detach()

    @data.setter
    def data(self, value: torch.Tensor) -> None:
        torch.Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.inner = value.inner  # type: ignore[attr-defined]


def _run(func: Any, *args: Any, **kwargs: Any) -> Any:
    """One operation: computed by the CPU, with everything that a device would mind."""
    name = str(func)
    flat = tree_flatten((args, kwargs))[0]
    sims = [x for x in flat if isinstance(x, Simulated)]
    if sims and name not in COPIES:
        _refuse_mixed(name, flat)
        _note_wait(name, func, args)
    out = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    if name == "aten.copy_.default":
        target, source = args[0], args[1]
        if isinstance(source, Simulated) != isinstance(target, Simulated):
            ahead = COUNTS.fetched if True in args[2:] or kwargs.get("non_blocking") else COUNTS.waits
            _count(ahead if isinstance(source, Simulated) else COUNTS.sent, "copy_")
        return target
    wanted = kwargs.get("device")
    there = bool(sims) if wanted is None else torch.device(wanted).type == NAME
    if name == "aten._to_copy.default" and bool(sims) != there:
        _count(*((COUNTS.sent, "to") if there else (COUNTS.waits, "to")))
    for tensor in sims:  # in place
        if out is tensor.inner:
            assert tensor.shape == out.shape, f"{name} makes its output larger: add it to RESIZED"
            return tensor
    return tree_map(lambda one: Simulated(one) if isinstance(one, torch.Tensor) and there else one, out)


def _inner(value: Any) -> Any:
    if isinstance(value, Simulated):
        return value.inner
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == NAME else value


def _index(index: Any) -> Any:
    """A list of numbers among the indices is a tensor that torch makes and sends."""
    if isinstance(index, tuple):
        return tuple(map(_index, index))
    return torch.tensor(index, device=NAME) if isinstance(index, list) else index


def _refuse_mixed(name: str, flat: list[Any]) -> None:
    """A number as a tensor without dimensions may lie on the host, as for CUDA."""
    for value in flat:
        if isinstance(value, torch.Tensor) and not isinstance(value, Simulated) and value.dim() > 0:
            raise RuntimeError(f"{name}: expected all tensors on {NAME}, and one of {tuple(value.shape)} is on the CPU")


def _note_wait(name: str, func: Any, args: Any) -> None:
    base = name.rpartition(".")[0]
    indexed = base in ("aten.index", "aten.index_put_", "aten.index_put") and any(
        isinstance(one, torch.Tensor) and one.dtype in (torch.bool, torch.uint8) for one in args[1]
    )
    repeated = base == "aten.repeat_interleave" and len(args) < 2
    if base in WAITS or indexed or repeated:
        _count(COUNTS.waits, base.removeprefix("aten."))


def _count(counter: Counter[str], what: str) -> None:
    """By the last line of this repository, the tests' own but for this file left out."""
    for frame in reversed(traceback.extract_stack(limit=60)):
        if frame.filename.startswith(ROOT) and frame.filename != __file__ and ".venv" not in frame.filename:
            counter[f"{what} {frame.filename.removeprefix(ROOT + '/')}:{frame.lineno}"] += 1
            return
    counter[what] += 1


class _Module:
    """What torch.get_device_module gives for the device."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return _STATE["on"]

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1 if _STATE["on"] else 0

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """Random numbers are the CPU's."""

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_device_name(self, device: Any = None) -> str:
        return "simulated device"

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        return FREE["bytes"], 1 << 33


FREE = {"bytes": 1 << 33}  # memory that the device says is free


def missing() -> str:
    """Why there can be no simulated device here, or nothing."""
    if torch.cuda.is_available():
        return "a process has one kind of accelerator, and this machine has a real one"
    try:
        from torch.utils.backend_registration import _setup_privateuseone_for_python_backend  # noqa: F401
    except ImportError:
        return f"torch {torch.__version__} has no backend in Python (2.10 has)"
    return ""


# Operations that autocast computes in its type, as it does on CUDA.
LOWERED = ("linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "conv2d", "scaled_dot_product_attention")


# Made by torch as an empty tensor that grows, which a tensor that only says it lives elsewhere cannot.
RESIZED = (
    "arange", "arange.start", "arange.start_step", "eye", "eye.m", "linspace", "randperm", "tril_indices",
    "triu_indices",
)  # fmt: skip


def register() -> None:
    """Before the first backward pass of the process: autograd counts the devices there, once. tests/conftest.py calls
    it; the device stays unavailable until `simulated()`."""
    if missing() or _STATE["registered"]:
        return
    from torch.utils import backend_registration

    class Hook(torch._C._acc.PrivateUse1Hooks):  # type: ignore[name-defined,misc]
        def is_available(self) -> bool:
            return _STATE["on"]

        def has_primary_context(self, device: int) -> bool:
            return True

        def is_built(self) -> bool:
            return True

    _KEPT.append(hook := Hook())
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module(), hook=hook)
    everything = torch.library.Library("_", "IMPL")
    everything.fallback(_run, dispatch_key="PrivateUse1")
    everything.fallback(torch.library.fallthrough_kernel, dispatch_key="AutocastPrivateUse1")
    aten = torch.library.Library("aten", "IMPL")
    for name in RESIZED:
        aten.impl(name, _made(name), "PrivateUse1")
    for name in LOWERED:
        aten.impl(name, _lowered(name), "AutocastPrivateUse1")
    _STATE["registered"] = True
    _KEPT.extend([everything, aten])


_KEPT: list[Any] = []  # a library that is collected takes its operations along


def _made(name: str) -> Any:
    base, _, overload = name.partition(".")
    operation = getattr(getattr(torch.ops.aten, base), overload or "default")

    def run(*args: Any, **kwargs: Any) -> Any:
        return Simulated(operation(*args, **{**kwargs, "device": "cpu"}))

    return run


def _lowered(name: str) -> Any:
    """The operation with its floating arguments in autocast's type."""
    operation = getattr(torch.ops.aten, name)
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def cast(value: Any) -> Any:
        floating = isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != torch.float64
        return value.to(torch.get_autocast_dtype(NAME)) if floating else value

    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return operation(*tree_map(cast, args), **tree_map(cast, kwargs))

    return run


def _sent(make: Any) -> Any:
    """torch.tensor and its like, which cannot fill a backend in Python: made on the host and sent, as CUDA's are."""

    def made(*args: Any, **kwargs: Any) -> Any:
        device = kwargs.get("device")
        if device is None or torch.device(device).type != NAME:
            return make(*args, **kwargs)
        return make(*args, **{**kwargs, "device": "cpu"}).to(device)

    return made


@contextmanager
def simulated() -> Iterator[Counts]:
    """The device is there, and the default, inside the with-statement. Skips the test where it cannot be."""
    if why := missing():
        pytest.skip(f"no simulated device: {why}")
    register()
    _STATE["on"] = True
    COUNTS.clear()
    with pytest.MonkeyPatch.context() as patch:
        # A tensor of a backend in Python cannot be viewed there (torch 2.14: "Cannot set version_counter").
        patch.setattr(torch, "inference_mode", torch.no_grad)
        patch.setattr(torch, "tensor", _sent(torch.tensor))
        patch.setattr(torch, "as_tensor", _sent(torch.as_tensor))
        patch.setattr(torch.accelerator, "synchronize", lambda device=None: _count(COUNTS.waits, "synchronize"))
        patch.setenv("VLBENCH_DEVICE", "")
        # A moved parameter stays the object that it was, as on CUDA: or tied weights would part.
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            yield COUNTS
        finally:
            torch.__future__.set_swap_module_params_on_conversion(False)
            _STATE["on"] = False
