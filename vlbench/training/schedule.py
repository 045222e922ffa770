"""How one stage is trained: learning rates, batches and what they are drawn from."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator, model_validator

from ..capability import capability_of
from ..options import MethodOptions, later
from .domains import Rule, domains_of, parse_numbers, refuse_domains
from .optimisers import Decayed

if TYPE_CHECKING:
    from ..task import Task

POLY_POWER = 0.9  # of Segmenter's schedule (Strudel et al. 2021), as of DeepLab's


class Schedule(MethodOptions):
    """How one stage is trained: the base of a training method's options."""

    steps: int = Field(ge=0, description="optimiser steps")
    lr: float = Field(gt=0, description="peak learning rate")
    min_lr: float = Field(0.0, ge=0, description="learning rate at the end of the decay")
    warmup: int = Field(0, ge=0, description="steps of linear warm-up")
    decay: Literal["cosine", "constant", "poly"] = Field(
        "cosine", description="learning-rate schedule after the warm-up; poly: (1 - t / T) ** 0.9"
    )
    weight_decay: float = Field(
        0.05, ge=0, description="decoupled weight decay of matrices; biases and norms have none"
    )
    clip: float = Field(0.0, ge=0, description="gradient norm to clip to, 0 = off")
    batch_size: int = Field(256, ge=1, description="samples a step")
    optimiser: Literal["adamw", "sgd"] = later(
        "adamw", description="AdamW (Loshchilov & Hutter 2019), or SGD with Nesterov momentum 0.9"
    )
    accumulate: int = later(
        1, ge=1, description="parts a batch is divided into: less memory, the gradient of the whole batch"
    )
    checkpointing: Literal["off", "on"] = later(
        "off", description="keep the inputs of blocks only and compute the rest again: less memory, the same gradient"
    )

    beta1: float = later(0.9, ge=0, lt=1, description="AdamW: decay of the mean of the gradients")
    beta2: float = later(0.999, ge=0, lt=1, description="AdamW: decay of the mean of their squares")
    decayed: Decayed = later(
        "matrices",
        description="what weight_decay acts on: matrices; all: biases and norms too (BLIP's and CLIP's scripts); timm: "
        "matrices but position embeddings and class tokens (DeiT's)",
    )

    stream: Literal["shuffled", "dynamic"] = later(
        "shuffled",
        description="dynamic: samples are drawn by domain (the groups that the task reports by), and domains whose "
        "held-out loss lies further above the reference get more of them",
    )
    stream_every: int = later(50, ge=1, description="stream=dynamic: steps between two moves of the shares")
    stream_rule: Rule = later(
        "doremi", description="stream=dynamic: how shares move: doremi, bandit (Sheared LLaMA's code), or constant"
    )
    stream_start: str = later(
        "", description="stream=dynamic: shares at first, like other:0.5+number:0.5; left out: those of the data"
    )
    stream_reference: str = later(
        "",
        description="stream=dynamic: loss that each domain should come to, like other:1.5+number:0.9; left out: "
        "that of the dense model",
    )
    stream_samples: int = later(
        64, ge=1, description="stream=dynamic: samples of the select split that a domain's loss is the mean over"
    )

    @field_validator("stream_start", "stream_reference")
    @classmethod
    def _numbers(cls, value: str) -> str:
        parse_numbers(value)
        return value.replace(",", "+")

    @model_validator(mode="after")
    def _meaning_of_stream(self) -> Schedule:
        extra = self.changed("stream_every", "stream_rule", "stream_start", "stream_reference", "stream_samples")
        if extra and self.stream != "dynamic":
            raise ValueError(f"{extra[0]}= has a meaning with stream=dynamic only")
        if self.stream_start and sum(parse_numbers(self.stream_start).values()) <= 0:
            raise ValueError("stream_start= should give a share above 0")
        return self

    @property
    def chooses(self) -> bool:
        return self.stream == "dynamic"

    @property
    def own_train(self) -> str:
        return "stream=dynamic" if self.stream == "dynamic" else ""

    @property
    def checks_task(self) -> bool:
        return self.stream == "dynamic"

    def check_task(self, task: Task) -> None:
        domains = list(domains_of(task, task.samples(task.split_for("train"))))
        for option in ("stream_start", "stream_reference"):
            refuse_domains(option, parse_numbers(getattr(self, option)), domains)

    def lr_at(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.decay == "constant":
            return self.lr
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        if self.decay == "poly":
            return float(self.min_lr + (self.lr - self.min_lr) * (1 - done) ** POLY_POWER)
        return self.min_lr + (self.lr - self.min_lr) * 0.5 * (1 + math.cos(math.pi * done))

    def refusal(self, capability: str) -> str:
        if self.accumulate > 1 and capability_of(capability).loss_over_batch:
            return (
                f"accumulate={self.accumulate}: the loss of {capability} compares the samples of a batch with one "
                "another, so that parts of a batch teach something else: use checkpointing=on or a smaller batch_size="
            )
        return ""
