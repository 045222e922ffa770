"""Dynamic batch loading: domains of samples whose shares move with their losses (Sheared LLaMA, Xia et al. 2024, arXiv
2310.06694, its published code; LoRAShear's recovery has the same idea).

    d = loss - reference, of each of n domains, on samples that are not trained on
    doremi      w <- softmax(log w + d)        bandit      w <- softmax(w + d)        constant      w <- w
    then        w <- (1 - c) w + c / n,  c = 1e-4        (not constant)

d is not cut off at 0, as in the code: a domain that is better than its reference loses weight at once. Shares move
before step every, 2 every, ...; what a batch holds is a function of the seed, the step, the shares and how many samples
of each domain were taken before, which travel in the checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..machine.workers import ALONE, World
from ..task import Sample, Task
from .batches import Batches
from .hooks import Hook

SMOOTHED = 1e-4  # c
DRAW = 0x5D  # a stream of random numbers apart from that of the epochs

Rule = Literal["doremi", "bandit", "constant"]


def moved(share: Tensor, difference: Tensor, rule: Rule) -> Tensor:
    """The next shares (n,), float64, of the shares (n,) and the losses above their reference (n,). In float32 inside,
    as the code has it."""
    if rule == "constant":
        new = share.float()
    else:
        before = share.float().log() if rule == "doremi" else share.float()
        new = (1 - SMOOTHED) * torch.softmax(before + difference.float(), 0) + SMOOTHED / len(share)
    new = new.double()
    return new / new.sum()


def parse_numbers(text: str) -> dict[str, float]:
    """ "number:0.5+other:0.5" -> {"number": 0.5, "other": 0.5}. Raises ValueError for anything else."""
    numbers: dict[str, float] = {}
    for part in filter(None, text.replace(",", "+").split("+")):
        name, _, value = part.rpartition(":")
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if not name or name in numbers or not 0 <= number < float("inf"):
            raise ValueError(f"{part!r} should be a domain and a number, like other:0.5")
        numbers[name] = number
    return numbers


def domains_of(task: Task, samples: Sequence[Sample]) -> dict[str, list[int]]:
    """Domain -> rows of `samples`, by name: the groups that the task reports by. Raises UserError where it has fewer
    than two."""
    group = task.groups(samples)
    domains: dict[str, list[int]] = {}
    for row, sample in enumerate(samples):
        if sample.id in group:
            domains.setdefault(group[sample.id], []).append(row)
    if len(domains) < 2:
        raise UserError(
            f"stream=dynamic: the samples of {task.name} are of no domains (the groups that a task reports by): leave "
            "it away."
        )
    return dict(sorted(domains.items()))


def refuse_domains(option: str, given: Mapping[str, float], domains: Sequence[str]) -> None:
    """Raise UserError where numbers are given, and not of just these domains."""
    if given and set(given) != set(domains):
        unknown, left_out = sorted(set(given) - set(domains)), sorted(set(domains) - set(given))
        wrong = f"{unknown[0]} is none of them" if unknown else f"{left_out[0]} has none"
        raise UserError(f"{option}= should give each of {', '.join(domains)} a number, and {wrong}.")


class DomainBatches(Batches):
    """Batches whose samples are drawn by domain. `share`: (n,) of the domains in their order; `taken`: how many samples
    of each were taken before the step that is planned.

    A domain's samples come in shuffled epochs of its own: none comes twice before all have come.
    """

    def __init__(
        self, samples: Sequence[Sample], domains: Mapping[str, Sequence[int]], *args: Any, **more: Any
    ) -> None:
        super().__init__(samples, *args, **more)
        self.domains = {name: list(rows) for name, rows in domains.items()}
        sizes = torch.tensor([len(rows) for rows in self.domains.values()], dtype=torch.float64)
        self.share_of = sizes / sizes.sum()
        self.taken = [0] * len(self.domains)
        self._orders: dict[int, tuple[int, list[int]]] = {}  # domain -> (epoch, its rows in that epoch's order)
        self._plan: tuple[int, list[int]] = (-1, [])

    def plan(self, step: int) -> None:
        """Draw what `step` holds; steps are planned once each, in their order."""
        rng = np.random.default_rng([self.seed, step, DRAW])
        chosen: list[int] = []
        for number, count in enumerate(rng.multinomial(self.size, self.share_of.numpy())):
            chosen += [self._sample(number, self.taken[number] + i) for i in range(count)]
            self.taken[number] += int(count)
        # Samples of one image adjoin, so that it is encoded once and owners do not decrease.
        self._plan = step, sorted(chosen, key=lambda row: [str(path) for path in self.samples[row].images])

    def chosen(self, step: int) -> list[Sample]:
        planned, rows = self._plan
        if planned != step:
            raise RuntimeError(f"step {step} is not planned: the last one is {planned}")
        return [self.samples[row] for row in rows]

    def seen(self, steps: int) -> int:
        """Every batch is full: domains give their samples again and again."""
        return steps * self.size

    def _sample(self, number: int, place: int) -> int:
        rows = list(self.domains.values())[number]
        epoch, index = divmod(place, len(rows))
        if self._orders.get(number, (-1, []))[0] != epoch:
            rng = np.random.default_rng([self.seed, epoch, number, DRAW])
            self._orders[number] = epoch, rng.permutation(rows).tolist()
        return self._orders[number][1][index]


class DynamicStream(Hook):
    """Plans every step of `batches`, and moves their shares every so many steps.

    losses: () -> domain -> loss of the model as it is, on samples that are not trained on. reference: the same, of
    what the model should come to.
    """

    def __init__(
        self,
        batches: DomainBatches,
        losses: Callable[[], Mapping[str, float]],
        reference: Mapping[str, float],
        *,
        every: int,
        rule: Rule,
        world: World = ALONE,
    ) -> None:
        self.batches, self.losses, self.reference = batches, losses, reference
        self.every, self.rule, self.world = every, rule, world
        self.history = batches.share_of[None]  # (moves + 1, n)

    def before_step(self, step: int) -> None:
        if step and step % self.every == 0:
            # Workers whose devices round otherwise go by the leader's losses, or they would draw other batches.
            losses: dict[str, float] = json.loads(
                self.world.share("losses of domains", json.dumps(dict(self.losses())))
            )
            above = torch.tensor([losses[name] - self.reference[name] for name in self.batches.domains])
            self.batches.share_of = moved(self.batches.share_of, above, self.rule)
            self.history = torch.cat([self.history, self.batches.share_of[None]])
        self.batches.plan(step)

    def recorded(self) -> dict[str, Any]:
        """What a record says of it: the domains, their reference, and their shares after every move."""
        names = list(self.batches.domains)
        return {
            "domains": names,
            "reference": [round(self.reference[name], 6) for name in names],
            "shares": [[round(x, 6) for x in row] for row in self.history.tolist()],
        }

    def state(self) -> dict[str, Tensor]:
        return {"history": self.history, "taken": torch.tensor(self.batches.taken)}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.history = state["history"].cpu()
        self.batches.share_of, self.batches.taken = self.history[-1], state["taken"].tolist()
