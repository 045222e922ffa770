"""What the authors' scripts set for every model, task and ratio (sdc17/UPop, scripts/ and configs/).

`paper` takes the hyper-parameters and leaves our exact budget, true costs and function-preserving cut; `upop-code`
takes the code's rules too. Their batches are of all GPUs together. The numbers stand where they belong, with each task
and model, as their `training["upop"]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlbench.errors import UserError
from vlbench.method import Context

GPUS = 8


@dataclass(frozen=True)
class Published:
    """What a task says of itself, and what its model adds. train: samples of its train split; epochs: target -> epochs
    of the search; finetune_epochs: those of finetuning where they are not as many; interval: steps between two updates,
    or target -> steps; l1: strengths of the penalty on gates of attention and feed-forward units, divided by the number
    of GPUs where it is used; decay: finetuning's schedule; decayed: the parameters that the code decays."""

    train: int
    epochs: Mapping[float, int]
    lr: float
    interval: int | Mapping[float, int]
    batch: int = 256
    finetune_epochs: int = 0
    min_lr: float = 0.0
    weight_decay: float = 0.05
    optimiser: str = ""
    decay: str = ""
    decayed: str = "all"
    loss: str = ""
    l1: tuple[float, float] | None = None

    @classmethod
    def of(cls, context: Context) -> Published:
        """Raises UserError where the task says nothing of UPop."""
        if "train" not in context.says("upop"):
            raise UserError(
                f"the paper has no setting for task={context.task}: give recipe=mini and your own steps and lr."
            )
        return cls(**context.says("upop"))


def mini(context: Context) -> dict[str, Any]:
    """As finetune has them: see there."""
    return dict(context.says("mini"))


def paper(context: Context) -> dict[str, Any]:
    """The published hyper-parameters, those of the nearest published target."""
    published = Published.of(context)
    target = 0.5 if context.sparsity is None else context.sparsity
    epochs, interval = published.epochs[_nearest(published.epochs, target)], published.interval
    steps = published.train // published.batch  # of one epoch
    both: dict[str, Any] = {"lr": published.lr, "batch_size": published.batch, "weight_decay": published.weight_decay}
    both |= {"optimiser": published.optimiser} if published.optimiser else {}
    search = {
        "steps": epochs * steps, **both,
        "interval": interval[_nearest(interval, target)] if isinstance(interval, Mapping) else interval,
    }  # fmt: skip
    finetune = {
        "steps": (published.finetune_epochs or epochs) * steps, **both, "warmup": 0, "min_lr": published.min_lr,
        **({"decay": published.decay} if published.decay else {}),
    }  # fmt: skip
    return {**_of("upop_search", search), **_of("finetune", finetune), **_loss(context)}


def code(context: Context) -> dict[str, Any]:
    """What the published scripts do: unit cost 12 for the vision models, 36 for the others. The mini world keeps its
    own lengths: an interval of 1,000 steps means nothing in a search of 150."""
    decayed = context.says("upop").get("decayed", Published.decayed)
    return {
        "upop_search.decayed": decayed,
        "finetune.decayed": decayed,
        **(_loss(context) if context.suite == "mini" else paper(context)),
        "upop_search.budget": "code",
        "upop_search.ramp": "sine-code",
        "upop_search.unit_cost": "36:1" if context.texts else "12:1",
        "upop_search.update_at_zero": context.texts,
        "upop_search.softmax_scale": "kept",
    }


def masks(context: Context) -> dict[str, Any]:
    """Learned masks with UPop's lengths and the strengths of UPop's penalty. (Those of the paper's own mask-based rows
    were not published; in UPop itself the z-score cancels the penalty.)"""
    values = {k.replace("upop_search", "mask_based_search"): v for k, v in paper(context).items()}
    del values["mask_based_search.interval"]
    for kind, strength in zip(("attention", "ffn"), Published.of(context).l1 or (), strict=False):
        values[f"mask_based_search.l1_{kind}"] = strength / GPUS
    return values


def _loss(context: Context) -> dict[str, Any]:
    """Retrieval is searched and finetuned with a momentum twin and a queue of 57,600 pairs."""
    loss = context.says("upop").get("loss")
    return {f"{link}.loss": loss for link in ("upop_search", "finetune")} if loss else {}


def _of(link: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{link}.{name}": value for name, value in values.items()}


def _nearest(settings: Mapping[float, int], target: float) -> float:
    return min(settings, key=lambda published: abs(published - target))
