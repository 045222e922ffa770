"""LoRA (Hu et al. 2021, arXiv 2106.09685) by peft, on what a pruner left.

    y = W x + b + alpha / r * B A x                  W has the pruner's zeros, B A has none

Merged (the default), the zeros of W are filled, and the row's realised sparsity says so; with merge=false the adapters
stay beside the weights, whose zeros stay, and count as parameters.
"""

from __future__ import annotations

import re
from typing import Any

from pydantic import Field
from torch import nn

from vlbench.errors import UserError
from vlbench.job import Job
from vlbench.method import Method, method
from vlbench.model import Model
from vlbench.nn.adapted import attach
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

from .finetune import small_batches
from .sparselora import paper

ADAPTER = "default"  # peft's name of the one adapter of a layer


class LoraOptions(AdapterOptions):
    """Options of LoRA."""

    merge: bool = Field(
        True,
        description="add the adapters to the weights, which fills their zeros; false: keep them beside, saved apart",
    )


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
            restore(job, "lora", options)
        scaling = _unwrap(net, ranks, merge=options.merge)
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
    """Put peft's layers in the places of those that `ranks` names, and of no other whose path ends alike."""
    exact = {path: "^" + re.escape(path) for path in ranks}
    config = _peft().LoraConfig(
        target_modules="|".join(map(re.escape, ranks)),
        r=options.rank,
        rank_pattern={exact[path]: rank for path, rank in ranks.items()},
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
    )
    _peft().inject_adapter_in_model(config, net, ADAPTER)


def _unwrap(net: nn.Module, ranks: Ranks, *, merge: bool) -> dict[str, float]:
    """Put the model's own layers back, adapters merged into their weights or beside them. Returns their scaling."""
    scalings: dict[str, float] = {}
    for path in ranks:
        wrapped: Any = net.get_submodule(path)
        plain, (a, b) = wrapped.get_base_layer(), (f[ADAPTER].weight.detach() for f in (wrapped.lora_A, wrapped.lora_B))
        scalings[path] = float(wrapped.scaling[ADAPTER])
        if merge:
            wrapped.merge()
        parent, _, name = path.rpartition(".")
        setattr(net.get_submodule(parent), name, plain)
        if not merge:
            attach(plain, a, b, scalings[path])
    if hasattr(net, "peft_config"):
        del net.peft_config
    return scalings
