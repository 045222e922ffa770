"""The runtime contract: where a compressed model is served, and what of a model can be served there.

A runtime is one file in vlbench/runtimes/ (or in the `runtimes` folder of a workspace):

    @runtime("onnx", title="ONNX Runtime", packages=("onnxruntime",), extra="onnx")
    class Onnx(Runtime): ...

The engine (vlbench/serving/) calls `refusal`, then `write` into an empty folder, then `open` on the same folder, and
compares what it answers there with the model itself on real samples of the run: the proof. `vlbench time` calls the
same three and measures the stated sample in the place of comparing.

What is served are the *stages* of a model (`Model.stages`): parts of inference with tensors in and one tensor out. What
is no stage stays in Python: tokenizing, beam search, sorting.
"""

from __future__ import annotations

import importlib.metadata
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from .capability import Stage as Stage
from .capability import Tensors as Tensors
from .compression.state import Compression
from .model import Model
from .records.record import Record
from .task import Sample

Serve = Callable[[Tensors], Tensor]  # what an opened runtime computes of one stage


@dataclass(frozen=True)
class Part:
    """A stage with an example of what it is given: the tensors of a call on real samples, and with some more rows."""

    stage: Stage
    example: Tensors


@dataclass(frozen=True)
class Served:
    """What is to be served. source: the folder of the saved model, or None of a model that nothing was done to.
    record: of the run whose model it is; None where there is no run."""

    model: Model
    state: Compression
    parts: Sequence[Part]
    source: Path | None = None
    record: Record | None = None


class Runtime(ABC):
    """One runtime. It has no state: what it knows of a model lies in the folder that it wrote.

    An export asks `refusal`, calls `write` into an empty folder, then `open` on that folder, and compares what is
    served there with the model on real samples (`proof` where it has no stages). A measurement opens the folder anew.

    tolerance: the largest difference of outputs, as a part of the largest output, with which the proof holds (float32).
    staged: whether it holds the model's stages. One that writes texts by itself (llama.cpp) has no stages: `open` gives
    nothing, and `proof` compares what it writes.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()
    tolerance: ClassVar[float] = 1e-4
    staged: ClassVar[bool] = True

    def version(self) -> str:
        """Of the packages that compute there: an entry of cost.json is keyed by it."""
        return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in self.packages)

    def refusal(self, served: Served) -> str:
        """Why this model cannot be held here, in words that end a sentence; "" where it can."""
        return ""

    @abstractmethod
    def write(self, served: Served, folder: Path) -> Sequence[str]:
        """Write the model into the empty folder; returns sentences that the user should read."""

    @abstractmethod
    def open(self, served: Served, folder: Path, threads: int) -> Mapping[str, Serve]:
        """Stage name -> its function, of what `write` wrote, reopened by the runtime from the files alone. `served`
        says only the names and order of inputs."""

    def proof(self, served: Served, folder: Path, samples: Sequence[Sample], capability: str) -> dict[str, Any]:
        """Of a runtime that is not staged: what proof.json says besides. Raises RunFailed where the runtime, reopened
        from `folder`, says something else than the model on one of the samples."""
        raise NotImplementedError(f"{type(self).__name__} is not staged and has no proof")


R = TypeVar("R", bound=type[Runtime])


def runtime(name: str, *, title: str, packages: tuple[str, ...] = (), extra: str = "") -> Callable[[R], R]:
    """Register a Runtime subclass. packages: of Python, as pip names them, without which it is not there. extra: that
    of vlbench which installs them."""

    def register(cls: R) -> R:
        cls.name, cls.title, cls.packages = name, title, packages
        return cls

    return register
