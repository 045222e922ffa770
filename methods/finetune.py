"""Finetuning of what a pruner left: every surviving parameter, on the task's own loss."""

from __future__ import annotations

from typing import Any

from vlbench.job import Job
from vlbench.method import Context, Method, method
from vlbench.model import Model
from vlbench.restoring.distill import DistilOptions
from vlbench.restoring.tuning import TuneOptions, tuned


class FinetuneOptions(DistilOptions, TuneOptions):
    """Defaults suit the mini world; for full-size models give the paper's values or recipe=paper."""

    steps: int = 300
    lr: float = 5e-4
    warmup: int = 20
    batch_size: int = 128


def small_batches(context: Context) -> dict[str, Any]:
    """What the task says of its mini world, whose samples may be dearer than those of other tasks."""
    return dict(context.says("mini"))


@method("finetune", title="Finetuning of the surviving weights", role="restorer", uses_seed=True)
class Finetune(Method):
    """Training on the task's loss over the train split, or on the dense model's logits. Zeros of a mask stay zero,
    removed units stay removed."""

    Options = FinetuneOptions
    parallel = True
    recipes = {"mini": small_batches}  # noqa: RUF012

    def check_model(self, model: Model) -> None:
        self.options.refuse_model(model)

    def apply(self, job: Job) -> None:
        def train(job: Job, options: FinetuneOptions) -> None:
            job.train("finetune", options, loss=options.objective(job))

        tuned(job, "finetune", self.options, train)
