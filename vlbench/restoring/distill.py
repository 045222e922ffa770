"""Distillation (Hinton et al. 2015, arXiv 1503.02531): the student's logits are drawn to those of the dense model.

    loss = (1 - w) * task + w * T^2 * KL(softmax(teacher / T) || softmax(student / T))

Logits are those of every place where the task's loss tells a class (a sample, a token, a pixel; of retrieval, a row or
a column of the similarities), weighted as in that loss, so that padding counts in neither.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor

from ..capability import Batch, capability_of
from ..errors import UserError
from ..model import Model
from ..options import later
from ..training.loop import Schedule
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

    @model_validator(mode="after")
    def _meaning(self) -> TeacherOptions:
        changed = self.changed("kd_weight", "temperature")
        if "kd_weight" in changed and self.loss != "both":
            raise ValueError("kd_weight= has a meaning with loss=both only")
        if "temperature" in changed and self.loss not in ("kd", "both"):
            raise ValueError("temperature= has a meaning with loss=kd or loss=both only")
        return self

    def objective(self, job: Job) -> Callable[[Batch], Tensor] | None:
        """The loss of a batch for Job.train; None for the task's own."""
        if self.loss == "task":
            return None
        weight = 1.0 if self.loss == "kd" else self.kd_weight
        distillation = Distillation(job.teacher(), job.task.capability, weight, self.temperature)
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
    """The loss above, w = weight, T = temperature. teacher: evaluated as it is, without dropout and gradients."""

    def __init__(self, teacher: Model, capability: str, weight: float, temperature: float) -> None:
        self.teacher, self.capability = teacher, capability_of(capability)
        self.weight, self.temperature = weight, temperature

    def __call__(self, student: Model, batch: Batch) -> Tensor:
        """The loss of a training batch, one forward of each model. Raises UserError where the two models' logits are
        not of the same classes."""
        with torch.no_grad():
            wanted = self.capability.outputs(self.teacher, batch).logits
        outputs = self.capability.outputs(student, batch)
        pairs = list(zip(wanted, outputs.logits, strict=True))
        if any(a.shape != b.shape for (a, _), (b, _) in pairs):
            raise UserError(
                "the teacher and the student do not tell the same classes: distil between models of a card."
            )
        parts = [divergence(a, b, weight, self.temperature) for (a, _), (b, weight) in pairs]
        distilled = self.temperature**2 * torch.stack(parts).sum()
        if self.weight == 1:
            return distilled
        return (1 - self.weight) * outputs.loss() + self.weight * distilled


def divergence(teacher: Tensor, student: Tensor, weight: Tensor | float, temperature: float) -> Tensor:
    """The weighted sum over places of KL(teacher || student), both softened. Logits (R, classes, ...), weight (R, ...)
    or one number for all. In float32 at least."""
    wide = torch.promote_types(student.dtype, torch.float32)
    p, q = (F.log_softmax(x.to(wide) / temperature, 1) for x in (teacher, student))
    return (F.kl_div(q, p, reduction="none", log_target=True).sum(1) * weight).sum()
