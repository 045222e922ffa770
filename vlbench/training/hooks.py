"""What a method adds to the training loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class NotFiniteError(Exception):
    """What a hook takes from a step is not finite: the loop tells the step, its samples and what is kept."""


@dataclass(frozen=True)
class Own:
    """Parameters of a method, outside the network, that the loop's optimiser moves with it.

    rate: their learning rate, as a multiple of the schedule's at every step. ascends: they climb the loss (multipliers
    of a Lagrangian). clipped: their gradients count in the norm that the network's are clipped by, and are clipped
    with them. They have no weight decay.
    """

    parameters: Sequence[Tensor]
    rate: float = 1.0
    ascends: bool = False
    clipped: bool = False


class Hook:
    """What a method adds to the loop. Its state travels with the checkpoint, and is the same in every worker.

    Of every step: before_step, forward and backward, after_backward, clipping, the optimiser, after_step. Once, before
    the first of them: bound.
    """

    def own(self) -> Sequence[Own]:
        """Parameters for the loop's optimiser. Their values are the hook's to keep in state(); the moments travel with
        the optimiser."""
        return ()

    def bound(self, optimiser: torch.optim.Optimizer) -> None:
        """The optimiser that trains, whose state (AdamW: exp_avg, exp_avg_sq, step) a hook may read."""

    def before_step(self, step: int) -> None:
        """Nothing of the step has been computed. What it draws from torch's numbers is a function of (seed, step)."""

    def leaves(self) -> Sequence[Tensor]:
        """Tensors outside the network whose .grad is read: several workers' are summed as the network's are."""
        return ()

    def after_backward(self, step: int) -> None:
        """Gradients are there (of the whole batch, in every worker), the optimiser has not moved.
        Raises NotFiniteError, whose words say what is not."""

    def after_step(self, step: int) -> None:
        """The optimiser has moved, gradients are cleared."""

    def state(self) -> dict[str, Tensor]:
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take back what state() gave."""
