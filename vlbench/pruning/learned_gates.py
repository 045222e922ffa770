"""Gates that are trained beside the weights, with an L1 penalty, by an optimiser of their own."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..compression.gates import Gates
from ..training.loop import Hook, Schedule
from .search import refuse_not_finite


class LearnedGates(Hook):
    """Adam on the task's loss + sum over the units of penalty[site] * |gate|, with the schedule's learning rate and no
    weight decay. The loop's optimiser knows the network's parameters only: gates are outside the network, and their
    moments travel with this hook."""

    def __init__(self, gates: Gates, penalty: Mapping[str, float], schedule: Schedule) -> None:
        self.gates, self.penalty, self.schedule = gates, penalty, schedule
        self.optimiser = torch.optim.Adam(gates.value.values(), lr=schedule.lr)

    def leaves(self) -> list[Tensor]:
        return list(self.gates.value.values())

    def after_backward(self, step: int) -> None:
        gradient = self.gates.take()
        refuse_not_finite(gradient)
        for name, gate in self.gates.value.items():
            gate.grad = gradient[name].to(gate.dtype) + self.penalty[name] * gate.detach().sign()

    def after_step(self, step: int) -> None:
        self.optimiser.param_groups[0]["lr"] = self.schedule.lr_at(step)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        state = {f"gate.{name}": gate.detach() for name, gate in self.gates.value.items()}
        for name, gate in self.gates.value.items():
            slots = self.optimiser.state[gate]
            state.update({f"{slot}.{name}": torch.as_tensor(value) for slot, value in slots.items()})
        return state

    def restore(self, state: dict[str, Tensor]) -> None:
        self.gates.set({name: state[f"gate.{name}"] for name in self.gates.value})
        for name, gate in self.gates.value.items():
            slots = {key.partition(".")[0]: v for key, v in state.items() if key.partition(".")[2] == name}
            slots.pop("gate")
            # Adam counts steps in a float32 on the host.
            self.optimiser.state[gate] = {k: v if k == "step" else v.to(gate.device) for k, v in slots.items()}
