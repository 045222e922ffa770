"""The verbs by which a method changes a model for good, and the state in which they are written down."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy, deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..model import Model
from ..structure import Structure
from .cut import Cut, Kept, cut
from .masks import PackedMasks, apply_masks
from .state import Compression


class Changes:
    """A model and what has been done to it: only what is done here (and by training) is saved with it."""

    def __init__(self, model: Model, state: Compression | None = None) -> None:
        self.model, self.state = model, state or Compression()

    @property
    def structure(self) -> Structure:
        """Where the model can be cut, as it is now."""
        return self.model.structure()

    def cut(self, keep: Kept, structure: Structure | None = None, *, kept_scale: bool = False) -> None:
        """Remove units for good. keep: units of the model as it is now, in the units of `structure` (the default one
        of every site where it is left out). kept_scale: see `compression.cut.cut`."""
        if self.state.masks:
            raise UserError("a structured pruner cannot follow an unstructured one: put it first in the chain.")
        self._refuse_adapters()
        structure = structure or self.structure
        self.state.cuts.append(Cut.of(structure, keep, kept_scale=kept_scale))
        cut(self.model.net, structure, keep, kept_scale=kept_scale)
        self.state.pattern = "structured"

    def mask(self, masks: Mapping[str, Tensor], pattern: str) -> None:
        """Set weights to zero for good: later links keep them zero, those that mask more weights among them."""
        self._refuse_adapters()
        before = self.state.masks
        for name, keep in masks.items():  # one at a time: all together are half of a model in 16 bits
            both = keep.cpu() & before[name] if name in before else keep
            apply_masks(self.model.net, {name: both})
            before[name] = both
        structured = self.state.pattern == "structured"
        self.state.pattern = f"structured+{pattern}" if structured else pattern

    def update(self, weights: Mapping[str, Tensor]) -> None:
        """Give parameters the values that a formula has for them (SparseGPT's update of the weights that stay). What is
        learnt by descent is trained with job.train(), which the record tells."""
        with torch.no_grad():
            for name, value in weights.items():
                self.model.net.get_parameter(name).copy_(value)
        self.state.updated.update(weights)

    def remask(self, name: str, keep: Tensor) -> None:
        """Put another mask in the place of a matrix's own; what it keeps has the value that the matrix has now."""
        if name not in self.state.masks:
            raise UserError(f"{name} has no mask that another could take the place of: prune it first.")
        self.state.masks[name] = keep
        self.state.updated.add(name)
        apply_masks(self.model.net, {name: keep})

    def add_biases(self, biases: Mapping[str, Tensor]) -> None:
        """Linear -> (rows,), which is added to its bias; one that has none is given one, which is saved with it."""
        self._refuse_adapters()
        for path, value in biases.items():
            layer: Any = self.model.net.get_submodule(path)
            if layer.bias is None:
                give_bias(layer)
                self.state.biases.append(path)
            with torch.no_grad():
                layer.bias += value.to(layer.bias)
            self.state.updated.add(f"{path}.bias")

    def at_run_time(self, method: str, state: Any) -> None:
        """Declare what `method` does when the model runs (a reducer's dropped tokens): JSON, from which its
        `replay(model, state)` does the same to a model that was opened. The caller has done it to this model already.
        """
        self.state.at_run_time[method] = state

    def trial(self) -> Changes:
        """The same model and state once more, to be tried out and thrown away: what is done to it enters no record."""
        model = copy(self.model)
        model.net = deepcopy(self.model.net)
        state = Compression(
            masks=PackedMasks(self.state.masks), pattern=self.state.pattern, adapters=self.state.adapters,
            biases=list(self.state.biases),
        )  # fmt: skip
        return Changes(model, state)

    def _refuse_adapters(self) -> None:
        if self.state.adapters:
            raise UserError("nothing can be pruned where adapters stand beside weights: train them with merge=true.")


def give_bias(layer: nn.Linear) -> None:
    """A bias of zeros."""
    weight = layer.weight
    layer.bias = nn.Parameter(weight.new_zeros(weight.shape[0]), requires_grad=weight.requires_grad)
