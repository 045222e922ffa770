"""Distillation (Hinton et al. 2015, arXiv 1503.02531): the student's logits are drawn to those of the dense model.

    loss = (1 - w) * task + w * (T^2 * KL(softmax(teacher / T) || softmax(student / T)) + h * hidden + a * affinity)

Logits are those of every place where the task's loss tells a class (a sample, a token, a pixel; of retrieval, a row or
a column of the similarities), weighted as in that loss, so that padding counts in neither. Other directions than KL's,
hidden and affinity are LLAVADI's (distil_terms.py); h and a are 0 unless they are given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import model_validator
from torch import Tensor

from ..capability import Batch, Hidden, Outputs, capability_of
from ..errors import UserError
from ..machine.memory import refuse_second_copy
from ..model import Model
from ..options import later
from ..training.loop import Hook, Own, Schedule
from .distil_terms import (
    UNSHOWN,
    Places,
    affinities_apart,
    contrasted_affinities,
    divergence,
    normalised,
    projector,
    states_apart,
)
from .momentum import MomentumOptions

if TYPE_CHECKING:
    from ..job import Job


class TeacherOptions(Schedule):
    """A stage that may be trained on what the dense model says."""

    loss: Literal["task", "kd", "both"] = later(
        "task", description="the task's loss; kd: distillation from the dense model's logits; both: these together"
    )
    kd_weight: float = later(0.5, ge=0, le=1, description="weight of distillation in loss=both, the task has the rest")
    temperature: float = later(2.0, gt=0, description="what the logits are divided by in distillation")
    kd: Literal["forward", "reverse", "jsd", "mse", "off"] = later(
        "forward", description="what lies between the logits: KL(teacher || student), reverse, their mean with the "
        "middle (jsd), squares (mse); off: only what kd_hidden and kd_affinity weigh"
    )  # fmt: skip
    kd_normalise: bool = later(False, description="bring each place's logits to mean 0 and deviation 1 before that")
    kd_hidden: float = later(0.0, ge=0, description="weight of the squares between the last hidden states")
    kd_places: Places = later("all", description="kd_hidden: of which places: all, or those that tell the answer")
    kd_projector: Literal["none", "mlp"] = later(
        "none", description="kd_hidden: mlp: two layers that train with the student bring its states to the teacher's"
    )
    kd_affinity: float = later(0.0, ge=0, description="weight of the cosines between image and answer tokens")
    kd_affinity_loss: Literal["mse", "contrastive"] = later(
        "mse", description="kd_affinity: squares, or cross entropy with the teacher's cosines as labels"
    )

    @model_validator(mode="after")
    def _meaning(self) -> TeacherOptions:
        changed = self.changed("kd_weight", "temperature")
        if "kd_weight" in changed and self.loss != "both":
            raise ValueError("kd_weight= has a meaning with loss=both only")
        changed += self.changed("kd", "kd_normalise", "kd_hidden", "kd_affinity")
        if changed and self.loss not in ("kd", "both"):
            raise ValueError(f"{changed[0]}= has a meaning with loss=kd or loss=both only")
        for weight, options in (("kd_hidden", ("kd_places", "kd_projector")), ("kd_affinity", ("kd_affinity_loss",))):
            if (extra := self.changed(*options)) and not getattr(self, weight):
                raise ValueError(f"{extra[0]}= has a meaning with {weight}= only")
        if self.kd == "off" and not (self.kd_hidden or self.kd_affinity):
            raise ValueError("kd=off leaves nothing to distil: give kd_hidden= or kd_affinity=")
        return self

    @property
    def asks_hidden(self) -> bool:
        """Whether the loss reads hidden states."""
        return self.kd_hidden > 0 or self.kd_affinity > 0

    def refuse_model(self, model: Model) -> None:
        """Raise UserError where distillation's second model does not fit into memory, or hidden states are asked of a
        family that does not tell them."""
        if self.loss not in ("kd", "both"):
            return
        refuse_second_copy(model.net, f"loss={self.loss}")
        if self.asks_hidden and not model.tells_hidden:
            name = "kd_hidden" if self.kd_hidden else "kd_affinity"
            raise UserError(f"{name}= compares hidden states, which the family of {model.card.name} does not tell.")
        if self.kd_affinity and type(model).image_tokens is Model.image_tokens:
            raise UserError(UNSHOWN)

    def objective(self, job: Job) -> Callable[[Batch], Tensor] | None:
        """The loss of a batch for Job.train; None for the task's own."""
        if self.loss == "task":
            return None
        weight = 1.0 if self.loss == "kd" else self.kd_weight
        distillation = Distillation(job.teacher(), job.task.capability, weight, self.temperature, self)
        if self.kd_projector == "mlp":
            (probe,) = job.data.calibration(1, 1)
            return Projected(distillation, job.model, probe, job.here.seed)
        return lambda batch: distillation(job.model, batch)


class DistilOptions(TeacherOptions, MomentumOptions):
    """What a restorer of all weights trains on."""

    loss: Literal["task", "kd", "both", "momentum"] = later(  # type: ignore[assignment]
        "task",
        description="the task's loss; kd: distillation from the dense model's logits; both: these together; momentum: "
        "retrieval's with momentum encoders and a queue, as BLIP's and CLIP's published finetuning has it",
    )

    def objective(self, job: Job) -> Callable[[Batch], Tensor] | None:
        return (MomentumOptions if self.loss == "momentum" else TeacherOptions).objective(self, job)


class Distillation:
    """The loss above, w = weight, T = temperature. teacher: evaluated as it is, without dropout and gradients. terms:
    what else is asked for; None: nothing. project: the student's hidden states -> the teacher's."""

    def __init__(
        self, teacher: Model, capability: str, weight: float, temperature: float, terms: TeacherOptions | None = None
    ) -> None:
        self.teacher, self.capability, self.terms = teacher, capability_of(capability), terms
        self.weight, self.temperature = weight, temperature
        self.project: Callable[[Tensor], Tensor] = lambda states: states

    def __call__(self, student: Model, batch: Batch) -> Tensor:
        """The loss of a training batch, one forward of each model. Raises UserError where the two models' logits are
        not of the same classes."""
        with torch.no_grad():
            wanted = self.capability.outputs(self.teacher, batch)
        outputs = self.capability.outputs(student, batch)
        parts = [self.temperature**2 * self._logits(wanted, outputs)]
        if self.terms is not None and self.terms.asks_hidden:
            parts += self._hidden(self.terms, hidden_of(wanted, self.teacher), hidden_of(outputs, student))
        distilled = torch.stack(parts).sum()
        if self.weight == 1:
            return distilled
        return (1 - self.weight) * outputs.loss() + self.weight * distilled

    def _logits(self, wanted: Outputs, outputs: Outputs) -> Tensor:
        pairs = list(zip(wanted.logits, outputs.logits, strict=True))
        if any(a.shape != b.shape for (a, _), (b, _) in pairs):
            raise UserError(
                "the teacher and the student do not tell the same classes: distil between models of a card."
            )
        direction = "forward" if self.terms is None else self.terms.kd
        if direction == "off":
            return outputs.logits[0][0].new_zeros((), dtype=torch.float32)
        apart = partial(divergence, temperature=self.temperature, direction=direction)
        if self.terms is None or not self.terms.kd_normalise:
            return torch.stack([apart(a, b, weight) for (a, _), (b, weight) in pairs]).sum()
        return torch.stack([apart(normalised(a), normalised(b), weight) for (a, _), (b, weight) in pairs]).sum()

    def _hidden(self, terms: TeacherOptions, wanted: Sequence[Hidden], had: Sequence[Hidden]) -> list[Tensor]:
        parts = []
        if terms.kd_hidden:
            parts.append(terms.kd_hidden * states_apart(wanted, had, terms.kd_places, self.project))
        if terms.kd_affinity:
            affinity = affinities_apart if terms.kd_affinity_loss == "mse" else contrasted_affinities
            parts.append(terms.kd_affinity * affinity(wanted, had))
        return parts


class Projected(Hook):
    """Distillation whose projector trains with the student, and is dropped afterwards."""

    def __init__(self, distillation: Distillation, student: Model, probe: Batch, seed: int) -> None:
        """probe: a training batch that tells the widths of both models' states."""
        self.distillation, self.student = distillation, student
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            models = (student, distillation.teacher)
            first = [hidden_of(distillation.capability.outputs(m, probe), m)[0].states for m in models]
            self.layers = projector(first[0].shape[-1], first[1].shape[-1]).to(first[0].device)
        distillation.project = lambda states: self.layers(states.to(next(self.layers.parameters()).dtype))

    def __call__(self, batch: Batch) -> Tensor:
        return self.distillation(self.student, batch)

    def own(self) -> Sequence[Own]:
        return [Own(list(self.layers.parameters()), clipped=True)]

    def state(self) -> dict[str, Tensor]:
        return {f"projector.{name}": value for name, value in self.layers.state_dict(keep_vars=True).items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.layers.load_state_dict({name.removeprefix("projector."): value for name, value in state.items()})


def hidden_of(outputs: Outputs, model: Model) -> Sequence[Hidden]:
    """The hidden states of a forward. Raises UserError where the family does not tell them."""
    if outputs.hidden is None:
        raise UserError(
            f"{type(model).__name__} does not tell its hidden states: leave kd_hidden= and kd_affinity= away."
        )
    return outputs.hidden()
