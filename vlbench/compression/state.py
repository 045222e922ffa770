"""What has been done to a model so far: the state that is saved beside its weights."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..records.record import Budget
from .cut import Cut
from .masks import PackedMasks


@dataclass
class Compression:
    """What has been done to the model so far. cuts: in order; masks: of the weights of the model as it is now."""

    cuts: list[Cut] = field(default_factory=list)
    masks: MutableMapping[str, Tensor] = field(default_factory=PackedMasks)
    pattern: str = "dense"
    trained: bool = False
    steps: int = 0
    samples_seen: int = 0
    log: dict[str, Any] = field(default_factory=dict)
    # Linear -> scaling, of the low-rank adapters that stand beside their weights (nn/adapted.py)
    adapters: dict[str, float] = field(default_factory=dict)
    # Method -> JSON: what acts when the model runs and lies in no tensor; Method.replay does it again on loading
    at_run_time: dict[str, Any] = field(default_factory=dict)

    # Linears that were given a bias and had none in the architecture
    biases: list[str] = field(default_factory=list)
    # Parameters that a formula has changed without training (SparseGPT's update); of this link, and not saved
    updated: set[str] = field(default_factory=set)

    @property
    def n_tuned(self) -> int:
        """How many settings were tried on the select split, of the link where most were."""
        return max((log.get("n_tuned", 1) for log in self.log.values()), default=1)

    @property
    def budget(self) -> Budget:
        return Budget(steps=self.steps, samples_seen=self.samples_seen)
