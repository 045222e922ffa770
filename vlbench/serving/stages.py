"""The stages of a model while it predicts: noted, or computed by a runtime in the model's place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..model import Model
from ..runtime import Part, Serve, Stage, Tensors

ROWS = 3  # of an example: more than one, which torch.export would take for a fixed size, and no more than is needed
Calls = dict[str, list[Tensors]]


@contextmanager
def noted(model: Model, stages: Sequence[Stage]) -> Iterator[Calls]:
    """Inside, the tensors of every call of a stage are noted by its name. Raises UserError where a family says that a
    call has tensors and it has none."""
    calls: Calls = {}

    def note(stage: Stage, original: Callable[..., Any], args: tuple[Any, ...], more: dict[str, Any]) -> Any:
        tensors = stage.tensors(*args, **more)
        if len(tensors) != len(stage.inputs) or not all(isinstance(t, Tensor) for t in tensors):
            raise UserError(
                f"{model.card.name} cannot be served elsewhere: its {stage.name} is not given {len(stage.inputs)} "
                "tensors, and its family has no Model.stages() that says what is."
            )
        output = original(*args, **more)
        if stage.place.count(".") == 0 and not isinstance(output, Tensor):
            raise UserError(
                f"{model.card.name} cannot be served elsewhere: its {stage.name} gives no tensor, and its family has "
                "no Model.stages() that says which part of it does."
            )
        calls.setdefault(stage.name, []).append(tuple(t.detach().clone() for t in tensors))
        return output

    with _in_place_of(model, stages, note):
        yield calls


@contextmanager
def served_by(model: Model, parts: Sequence[Part], serve: Mapping[str, Serve]) -> Iterator[None]:
    """Inside, the runtime's functions compute the stages."""

    def call(stage: Stage, original: Callable[..., Any], args: tuple[Any, ...], more: dict[str, Any]) -> Any:
        tensors = stage.tensors(*args, **more)
        output = serve[stage.name](tensors)
        return stage.result(output.to(tensors[0].device))

    with _in_place_of(model, [part.stage for part in parts], call):
        yield


Call = Callable[[Stage, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


@contextmanager
def _in_place_of(model: Model, stages: Sequence[Stage], call: Call) -> Iterator[None]:
    """Put `call` at the place of each stage, on the instance alone, and take it away afterwards."""
    places: list[tuple[Any, str]] = []
    try:
        for stage in stages:
            *path, name = stage.place.split(".")
            owner: Any = model
            for step in path:
                owner = getattr(owner, step)
            original = getattr(owner, name)

            def instead(*args: Any, stage: Stage = stage, original: Callable[..., Any] = original, **more: Any) -> Any:
                return call(stage, original, args, more)

            vars(owner)[name] = instead  # nn.Module.__setattr__ is for modules
            places.append((owner, name))
        yield
    finally:
        for owner, name in places:
            del vars(owner)[name]


def parts_of(model: Model, stages: Sequence[Stage], calls: Calls) -> list[Part]:
    """The stages that were called, each with an example. Raises UserError where none was."""
    parts = [Part(stage, _example(stage, calls[stage.name][0])) for stage in stages if calls.get(stage.name)]
    if not parts:
        raise UserError(f"{model.card.name} calls none of its stages here, so that nothing of it can be served.")
    return parts


def _example(stage: Stage, tensors: Tensors) -> Tensors:
    """The tensors with a few rows, and with at least two of everything that is left open."""
    grown = []
    for dims, tensor in zip(stage.inputs.values(), tensors, strict=True):
        for axis, name in enumerate(dims):
            if name and tensor.shape[axis] < 2:
                tensor = torch.cat([tensor] * 2, axis)
            if name and axis == 0:
                tensor = tensor[:ROWS]
        grown.append(tensor.clone())  # of one made in inference mode, too, which nothing can be traced with
    return tuple(grown)
