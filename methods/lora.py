"""LoRA (Hu et al. 2021, arXiv 2106.09685) by peft, on what a pruner left.

    y = W x + b + alpha / r * B A x                  W has the pruner's zeros, B A has none

Merged (the default), the zeros of W are filled, and the row's realised sparsity says so; with merge=false the adapters
stay beside the weights, whose zeros stay, and count as parameters.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from vlbench.errors import UserError
from vlbench.job import Job
from vlbench.method import Method, method
from vlbench.model import Model
from vlbench.nn.adapted import attach
from vlbench.options import later
from vlbench.restoring.adapters import (
    AdapterOptions,
    Ranks,
    alone,
    drawn,
    forget_filled,
    placed,
    pruned_towers,
    refuse_misplaced,
    restore,
)
from vlbench.restoring.ranks import Allocated, Budget, HighThenLow, Mixed
from vlbench.training.hooks import Hook

from .finetune import small_batches
from .sparselora import paper

ADAPTER = "default"  # peft's name of the one adapter of a layer


class LoraOptions(AdapterOptions):
    """Options of LoRA."""

    merge: bool = Field(
        True,
        description="add the adapters to the weights, which fills their zeros; false: keep them beside, saved apart",
    )
    rank_schedule: Literal["fixed", "warmup", "mixed", "dynamic"] = later(
        "fixed",
        description="warmup: a higher rank at first, cut to rank=; mixed: another rank up to rank= in every step; "
        "dynamic: AdaLoRA, matrices share the ranks out by importance",
    )
    rank_start: int | None = later(
        None, ge=1, description="rank_schedule=warmup or dynamic: the rank at first; left out: 2 x rank, and 1.5 x rank"
    )
    rank_steps: float = later(
        0.3,
        gt=0,
        lt=0.5,
        description="warmup: part of the steps at the first rank; dynamic: before it falls, and after",
    )

    @model_validator(mode="after")
    def _scheduled(self) -> LoraOptions:
        extra = self.changed("rank_start", "rank_steps")
        if extra and self.rank_schedule not in ("warmup", "dynamic"):
            raise ValueError(f"{extra[0]}= has a meaning with rank_schedule=warmup or dynamic only")
        if self.rank_start is not None and self.rank_start <= self.rank:
            raise ValueError(f"rank_start={self.rank_start} should be above rank={self.rank}")
        if self.rank_schedule != "fixed" and self.perturb != "off":
            raise ValueError(f"perturb={self.perturb} is of adapters of a fixed rank: leave rank_schedule= away")
        return self

    def first_rank(self, rank: int) -> int:
        """Of an adapter that ends with `rank`."""
        factor = {"warmup": 2.0, "dynamic": 1.5}.get(self.rank_schedule, 1.0)
        return round(rank * (factor if self.rank_start is None else self.rank_start / self.rank))


@method(
    "lora",
    title="LoRA: adapters beside the weights (peft), merged or apart",
    role="restorer",
    uses_seed=True,
    paper="https://arxiv.org/abs/2106.09685",
)
class Lora(Method):
    """Trains A and B alone; weights, biases and norms stay. What is merged is dense again: its masks are dropped."""

    Options = LoraOptions
    parallel = True
    recipes = {"mini": small_batches, "paper": paper}  # noqa: RUF012

    def check_model(self, model: Model) -> None:
        _peft()
        refuse_misplaced(model, self.options)

    def apply(self, job: Job) -> None:
        net, options = job.model.net, self.options
        ranks = placed(job.model, options, pruned_towers(job.changes.structure, job.changes.state))
        with alone(net):
            with drawn(job.here.seed):
                _wrap(net, ranks, options)
            restore(job, "lora", options, partial(scheduled, ranks=ranks, options=options))
        scaling = _unwrap(net, ranks, options=options)
        if options.merge:
            forget_filled(net, job.changes.state)
        else:
            job.changes.state.adapters = scaling


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise UserError('lora needs peft: pip install "vlbench[peft]".') from None
    return peft


def _wrap(net: nn.Module, ranks: Ranks, options: LoraOptions) -> None:
    """Put peft's layers in the places of those that `ranks` names, and of no other whose path ends alike. Whatever the
    rank at first, the product is scaled by alpha / rank."""
    exact = {path: "^" + re.escape(path) for path in ranks}
    first = {path: _first(net, path, rank, options) for path, rank in ranks.items()}
    modules = "|".join(map(re.escape, ranks))
    if options.rank_schedule == "dynamic":
        # peft divides alpha by the rank at first, which is one for all layers.
        most = max(first.values())
        config = _peft().AdaLoraConfig(
            target_modules=modules, init_r=most, target_r=options.rank, total_step=max(options.steps, 1),
            lora_alpha=options.alpha * most / options.rank, lora_dropout=options.dropout,
        )  # fmt: skip
    else:
        config = _peft().LoraConfig(
            target_modules=modules,
            r=options.rank,
            rank_pattern={exact[path]: rank for path, rank in first.items()},
            lora_alpha=options.alpha,
            alpha_pattern={exact[p]: options.alpha * n / ranks[p] for p, n in first.items() if n != ranks[p]},
            lora_dropout=options.dropout,
        )
    _peft().inject_adapter_in_model(config, net, ADAPTER)


def _first(net: nn.Module, path: str, rank: int, options: LoraOptions) -> int:
    """The rank at first: no larger than the matrix has."""
    return min(options.first_rank(rank), *map(int, net.get_parameter(f"{path}.weight").shape))


def scheduled(net: nn.Module, ranks: Ranks, options: LoraOptions) -> list[Hook]:
    """What changes the ranks of a wrapped network while it trains."""
    steps = options.steps
    if options.rank_schedule == "warmup":
        return [HighThenLow(net, ranks, max(1, round(options.rank_steps * steps)))]
    if options.rank_schedule == "mixed":
        return [Mixed(net)]
    if options.rank_schedule == "fixed":
        return []
    layers: dict[str, Any] = {path: net.get_submodule(path) for path in ranks}
    three = {path: (x.lora_A[ADAPTER], x.lora_E[ADAPTER], x.lora_B[ADAPTER]) for path, x in layers.items()}
    start, part = sum(len(q) for q, _, _ in three.values()), round(options.rank_steps * steps)
    return [Allocated(three, Budget(start, sum(ranks.values()), steps, part, part))]


def _unwrap(net: nn.Module, ranks: Ranks, *, options: LoraOptions) -> dict[str, float]:
    """Put the model's own layers back, adapters merged into their weights or beside them. Returns their scaling."""
    scalings: dict[str, float] = {}
    for path, rank in ranks.items():
        wrapped: Any = net.get_submodule(path)
        plain = wrapped.get_base_layer()
        a, b, scalings[path] = _factors(wrapped, rank, options)
        if options.merge:
            wrapped.merge()
        parent, _, name = path.rpartition(".")
        setattr(net.get_submodule(parent), name, plain)
        if not options.merge:
            attach(plain, a, b, scalings[path])
    if hasattr(net, "peft_config"):
        del net.peft_config
    return scalings


def _factors(wrapped: Any, rank: int, options: LoraOptions) -> tuple[Tensor, Tensor, float]:
    """A, B and the scaling of their product, without what a schedule has set to zero."""
    scaling = float(wrapped.scaling[ADAPTER])
    if options.rank_schedule != "dynamic":
        a, b = (factors[ADAPTER].weight.detach() for factors in (wrapped.lora_A, wrapped.lora_B))
        return a[:rank], b[:, :rank], scaling
    q, e, p = (factors[ADAPTER].detach() for factors in (wrapped.lora_A, wrapped.lora_E, wrapped.lora_B))
    left = e.flatten() != 0
    left[0] |= not bool(left.any())  # an adapter of rank 0 has no file: its product is 0 all the same
    return (q * e)[left], p[:, left], scaling / (float(wrapped.ranknum[ADAPTER]) + 1e-5)
