"""The model as it is: the row that every other one is compared with."""

from __future__ import annotations

from vlbench.job import Job
from vlbench.method import Method, method


@method("dense", title="Dense model, unchanged", role="baseline")
class Dense(Method):
    """Changes nothing. dense+finetune is the trained control of every trained method."""

    def apply(self, job: Job) -> None:
        pass
