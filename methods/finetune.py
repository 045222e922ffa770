"""Finetuning of what a pruner left: every surviving parameter, on the task's own loss."""

from __future__ import annotations

from vlbench.job import Job
from vlbench.method import Method, method
from vlbench.training.loop import Schedule


class FinetuneOptions(Schedule):
    """Defaults suit the mini world; for full-size models give the paper's values or recipe=paper."""

    steps: int = 300
    lr: float = 5e-4
    warmup: int = 20
    batch_size: int = 128


@method("finetune", title="Finetuning of the surviving weights", role="restorer", uses_seed=True)
class Finetune(Method):
    """AdamW on the task's loss over the train split. Zeros of a mask stay zero, removed units stay removed."""

    Options = FinetuneOptions

    def apply(self, job: Job) -> None:
        job.train("finetune", self.options)
