"""The model as it is: the row that every other one is compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlbench.method import Method, method

if TYPE_CHECKING:
    from vlbench.job import Job


@method("dense", title="Dense model, unchanged", role="baseline")
class Dense(Method):
    """Changes nothing. dense+finetune is the trained control of every trained method."""

    def apply(self, job: Job) -> None:
        pass
