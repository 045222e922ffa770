"""The loss of momentum encoders and queues, which retrieval models are trained with (Li et al. 2021, arXiv 2107.07651,
section 3; Li et al. 2022, arXiv 2201.12086), after MoCo (He et al. 2020, arXiv 1911.05722).

A twin of the model follows it, twin <- m twin + (1 - m) model, once a step. Images are compared with texts of this
batch, as the twin sees them, and with a queue of those of earlier batches; texts with images likewise. With unit
features of a sample, u the model's and u' the twin's, the others' features V = [v' of the batch, queue], a scale s, and
the share p_j of V's members that show the sample's image:

    loss = mean of both directions of CE(softmax(s u V), a softmax(s u' V) + (1 - a) p) + rest

where a grows linearly from 0 over the first epoch, and the family says what the rest is (BLIP: of its matching head).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from types import FunctionType
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor

from ..capability import Batch, Pairs, Views, capability_of
from ..errors import UserError
from ..model import Model
from ..options import later
from ..plugins.table import table
from ..task import Sample
from ..training.loop import Hook, Schedule

if TYPE_CHECKING:
    from ..job import Job

NOBODY = -1  # the image that a queue's first entries show


class MomentumOptions(Schedule):
    """A stage that may be trained on the loss of momentum encoders."""

    loss: Literal["task", "momentum"] = later(
        "task",
        description="the task's loss; momentum: retrieval's with momentum encoders and a queue, as BLIP's and CLIP's "
        "published finetuning has it",
    )
    queue: int = later(
        57600, ge=1, description="loss=momentum: pairs of earlier batches to compare with, at most the train split"
    )
    momentum: float = later(0.995, ge=0, lt=1, description="loss=momentum: what the twin keeps of its weights a step")
    alpha: float = later(
        0.4, ge=0, le=1, description="loss=momentum: the twin's share in the targets, from 0 over the first epoch"
    )

    hardness: float = later(
        0.0,
        ge=0,
        description="loss=task of retrieval: negatives weigh exp(hardness x similarity), a weight without gradient "
        "(LLaVE: 9); 0: as the model's configuration says",
    )

    @model_validator(mode="after")
    def _meaning_of_momentum(self) -> MomentumOptions:
        given = self.changed("alpha", "momentum", "queue")
        if given and self.loss != "momentum":
            raise ValueError(f"{given[0]}= has a meaning with loss=momentum only")
        if self.hardness and self.loss != "task":
            raise ValueError("hardness= has a meaning with loss=task only")
        return self

    def refusal(self, capability: str) -> str:
        able = [name for name in table("capabilities").entries if capability_of(name).momentum]
        if self.loss == "momentum" and capability not in able:
            return (
                f"loss=momentum: the capability {capability} has no momentum encoders ({', '.join(able)} has them): "
                "leave it away"
            )
        if self.hardness and not capability_of(capability).loss_over_batch:
            return f"hardness=: the capability {capability} has no contrastive loss: leave it away"
        return super().refusal(capability)

    def objective(self, job: Job) -> Callable[[Batch], Tensor] | None:
        """The loss of a batch for Job.train; None for the task's own. Asked for before gates are put on the model."""
        if self.loss == "task":
            return hardened(job, self.hardness) if self.hardness else None
        epoch = job.data.batches(self.batch_size).batches_per_epoch
        return Momentum(
            job.model, job.task.capability, self, job.data.samples("train"), epoch=epoch, seed=job.here.seed
        )


@dataclass
class Queue:
    """The features of the last pairs, (K, d) each, and the numbers (K,) of their images. next: where the oldest is."""

    images: Tensor
    texts: Tensor
    numbers: Tensor
    next: int = 0

    @classmethod
    def random(cls, size: int, like: Tensor, seed: int) -> Queue:
        """Random directions, which are negatives of everything until they are replaced, as the originals begin."""
        draws = torch.randn(2, size, like.shape[1], generator=torch.Generator().manual_seed(seed))
        dtype = torch.promote_types(like.dtype, torch.float32)
        images, texts = F.normalize(draws, dim=-1).to(like.device, dtype)
        return cls(images, texts, torch.full((size,), NOBODY, device=like.device))

    def push(self, pairs: Pairs, numbers: Tensor) -> None:
        """In the place of the oldest; of a batch larger than the queue its end."""
        size = len(self.numbers)
        count = min(size, len(numbers))
        at = (self.next + torch.arange(count, device=self.numbers.device)) % size
        self.images[at] = pairs.images.detach()[-count:].to(self.images.dtype)
        self.texts[at] = pairs.texts.detach()[-count:].to(self.texts.dtype)
        self.numbers[at] = numbers[-count:]
        self.next = (self.next + count) % size


def hardened(job: Job, hardness: float) -> Callable[[Batch], Tensor]:
    """The task's loss with harder negatives. Raises UserError for a model whose loss has no such weight."""
    if not getattr(job.model, "hardens", False):
        raise UserError(f"hardness=: the loss of {job.model.card.name} weighs no negatives: leave it away.")
    loss = capability_of(job.task.capability).loss
    return lambda batch: loss(job.model, replace(batch, options={**batch.options, "hardness": hardness}))


class Momentum(Hook):
    """The loss of one training batch after the other, with what it keeps from one to the next.

    model: as yet without gates, which the twin has none of (in the originals neither). samples: what the batches are
    of; those that show one image are right for one another. epoch: batches of an epoch. The twin sees without dropout,
    and is no part of the model that is saved. Raises UserError at the first batch where the family has no such loss.
    """

    def __init__(
        self,
        model: Model,
        capability: str,
        options: MomentumOptions,
        samples: Sequence[Sample],
        *,
        epoch: int,
        seed: int,
    ) -> None:
        self.model, self.twin = model, twin_of(model)
        self.capability = capability_of(capability)
        self.options, self.epoch, self.seed = options, epoch, seed
        self.number = {images: i for i, images in enumerate(dict.fromkeys(s.images for s in samples))}
        self.size = min(options.queue, len(samples))
        self.queue: Queue | None = None  # its width is that of the first features
        self.seen = 0  # batches

    def __call__(self, batch: Batch) -> Tensor:
        """The loss of the next batch. Called once a step: the twin and the queue move."""
        self._follow()
        views = self.capability.views(self.model, batch, self.twin)
        numbers = torch.tensor([self.number[s.images] for s in batch.samples], device=views.scale.device)
        if self.queue is None:
            self.queue = Queue.random(self.size, views.queued.images, self.seed)
        alpha = self.options.alpha * min(1.0, self.seen / self.epoch)
        loss = contrast(views, self.queue, numbers, alpha) + views.rest
        self.queue.push(views.queued, numbers)
        self.seen += 1
        return loss

    @torch.no_grad()
    def _follow(self) -> None:
        """What is not trained stays equal as it is."""
        keep = self.options.momentum
        for name, trained in self.model.net.named_parameters():
            if trained.requires_grad:
                self.twin.net.get_parameter(name).mul_(keep).add_(trained, alpha=1 - keep)

    def state(self) -> dict[str, Tensor]:
        state: dict[str, Tensor] = {f"twin.{n}": p.detach() for n, p in self.twin.net.named_parameters()}
        state["seen"] = torch.tensor(self.seen)
        if self.queue is not None:
            state.update(images=self.queue.images, texts=self.queue.texts, numbers=self.queue.numbers)
            state["next"] = torch.tensor(self.queue.next)
        return state

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        for name, parameter in self.twin.net.named_parameters():
            parameter.copy_(state[f"twin.{name}"])
        self.seen = int(state["seen"])
        if "next" in state:
            images, texts, numbers = (state[n].to(self.model.device) for n in ("images", "texts", "numbers"))
            self.queue = Queue(images, texts, numbers, int(state["next"]))


def contrast(views: Views, queue: Queue, numbers: Tensor, alpha: float) -> Tensor:
    """The contrastive part. numbers: (n,) of the batch's images; alpha: the twin's share in the targets."""
    # In float32, as the originals count them: in float64 a third more exactly is another loss by 2e-7.
    same = (numbers[:, None] == torch.cat([numbers, queue.numbers])).float()
    right = same / same.sum(1, keepdim=True)

    def one_way(own: Tensor, twin: Tensor, others: Tensor) -> Tensor:
        with torch.no_grad():
            target = alpha * F.softmax(views.scale * twin @ others.t(), dim=1) + (1 - alpha) * right
        return F.cross_entropy(views.scale * own @ others.t(), target)

    to_texts = one_way(views.own.images, views.twin.images, torch.cat([views.twin.texts, queue.texts]))
    to_images = one_way(views.own.texts, views.twin.texts, torch.cat([views.twin.images, queue.images]))
    return (to_texts + to_images) / 2


def twin_of(model: Model) -> Any:
    """A copy of the model with weights of its own that are not trained. Raises RuntimeError where a module's forward
    was replaced by a plain function (a gate): its copy would still compute with the model's own weights."""
    if any(isinstance(vars(module).get("forward"), FunctionType) for module in model.net.modules()):
        raise RuntimeError("a twin is made before gates are put on the model")
    twin = copy(model)
    twin.net = deepcopy(model.net).eval().requires_grad_(False)
    return twin
