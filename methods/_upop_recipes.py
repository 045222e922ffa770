"""What the authors' scripts set for every model, task and ratio (sdc17/UPop, scripts/ and configs/).

`paper` takes the hyper-parameters and leaves our exact budget, true costs and function-preserving cut; `upop-code`
takes the code's rules too. Their batches are of all GPUs together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from vlbench.errors import UserError
from vlbench.method import Context


class Published(NamedTuple):
    """One multimodal task. train: its samples; epochs: target -> epochs of the search, and as many of finetuning;
    interval: steps between two updates; l1: strengths of the penalty on gates of attention and feed-forward units,
    divided by the number of GPUs where it is used."""

    train: int
    epochs: Mapping[float, int]
    lr: float
    interval: int
    l1: tuple[float, float]


PUBLISHED = {
    "nlvr2": Published(86_373, {0.5: 15, 2 / 3: 20, 0.75: 23, 0.8: 24, 0.9: 27}, 3e-6, 50, (4.8e-3, 2e-4)),
    "vqav2": Published(443_757, {0.5: 10, 0.75: 15}, 2e-5, 1000, (1.44e-2, 5e-4)),
    "coco_caption": Published(566_747, {0.5: 5, 0.75: 8}, 1e-5, 100, (3.2e-2, 1e-3)),
    "coco_retrieval": Published(566_747, {0.5: 6, 0.75: 9}, 1e-5, 200, (6.4e-3, 2e-4)),
    "flickr30k_retrieval": Published(145_000, {0.5: 12, 0.75: 18}, 1e-5, 50, (6.4e-3, 2e-4)),
}
RETRIEVAL = ("coco_retrieval", "flickr30k_retrieval")
CLIP_L1 = (22 / 15 * 8e-3, 2e-4)
GPUS, BATCH = 8, 256
# DeiT: 60 epochs of search and 300 of finetuning in batches of 4,096, at target -> steps between two updates.
DEIT_INTERVALS = {0.1: 1600, 0.2: 1000, 0.3: 800, 0.4: 800, 0.5: 800}
DEIT_STEPS = 1_281_167 // 4096  # an epoch
# Segmenter: 16 epochs of search and 64 of finetuning in batches of 64.
SEGMENTER_INTERVALS = {0.1: 500, 0.15: 400, 0.2: 300, 0.3: 200}
SEGMENTER_STEPS = 20_210 // 64
SGD = {"optimiser": "sgd", "weight_decay": 0.0}  # Nesterov momentum 0.9


def mini(context: Context) -> dict[str, Any]:
    """As finetune has them: see there."""
    return {"batch_size": 48} if context.task == "ade20k" else {}


def paper(context: Context) -> dict[str, Any]:
    """The published hyper-parameters, those of the nearest published target."""
    target = 0.5 if context.sparsity is None else context.sparsity
    if context.task == "imagenet":
        interval = DEIT_INTERVALS[_nearest(DEIT_INTERVALS, target)]
        return _both(60 * DEIT_STEPS, 300 * DEIT_STEPS, 8e-4, 4096, interval, min_lr=1e-5)
    if context.task == "ade20k":
        interval = SEGMENTER_INTERVALS[_nearest(SEGMENTER_INTERVALS, target)]
        both = _both(16 * SEGMENTER_STEPS, 64 * SEGMENTER_STEPS, 4e-3, 64, interval, min_lr=1e-5)
        sgd = {f"{link}.{name}": value for link in ("upop_search", "finetune") for name, value in SGD.items()}
        return {**both, **sgd, "finetune.decay": "poly"}
    if context.task not in PUBLISHED:
        raise UserError(
            f"the paper has no setting for task={context.task}: give recipe=mini and your own steps and lr."
        )
    published = PUBLISHED[context.task]
    steps = published.epochs[_nearest(published.epochs, target)] * (published.train // BATCH)
    decay = 0.2 if context.model.startswith("clip") else 0.05
    both = _both(steps, steps, published.lr, BATCH, published.interval, weight_decay=decay)
    return {**both, **_retrieval(context)}


def code(context: Context) -> dict[str, Any]:
    """What the published scripts do: unit cost 12 for the vision models, 36 for the others. The mini world keeps its
    own lengths: an interval of 1,000 steps means nothing in a search of 150."""
    vision_only = context.task in ("imagenet", "ade20k")
    decayed = {"imagenet": "timm", "ade20k": "matrices"}.get(context.task, "all")  # Segmenter's decay is 0
    return {
        "upop_search.decayed": decayed,
        "finetune.decayed": decayed,
        **(_retrieval(context) if context.suite == "mini" else paper(context)),
        "upop_search.budget": "code",
        "upop_search.unit_cost": "12:1" if vision_only else "36:1",
        "upop_search.update_at_zero": not vision_only,
        "upop_search.softmax_scale": "kept",
    }


def masks(context: Context) -> dict[str, Any]:
    """Learned masks with UPop's lengths and the strengths of UPop's penalty. (Those of the paper's own mask-based rows
    were not published; in UPop itself the z-score cancels the penalty.)"""
    values = {k.replace("upop_search", "mask_based_search"): v for k, v in paper(context).items()}
    del values["mask_based_search.interval"]
    if context.task in PUBLISHED:
        l1 = CLIP_L1 if context.model.startswith("clip") else PUBLISHED[context.task].l1
        for kind, strength in zip(("attention", "ffn"), l1, strict=True):
            values[f"mask_based_search.l1_{kind}"] = strength / GPUS
    return values


def _retrieval(context: Context) -> dict[str, Any]:
    """Retrieval is searched and finetuned with a momentum twin and a queue of 57,600 pairs."""
    links = ("upop_search", "finetune") if context.task in RETRIEVAL else ()
    return {f"{link}.loss": "momentum" for link in links}


def _nearest(settings: Mapping[float, int], target: float) -> float:
    return min(settings, key=lambda known: abs(known - target))


def _both(
    search: int, finetune: int, lr: float, batch: int, interval: int, *, min_lr: float = 0.0, weight_decay: float = 0.05
) -> dict[str, Any]:
    return {
        "upop_search.steps": search, "upop_search.lr": lr, "upop_search.batch_size": batch,
        "upop_search.weight_decay": weight_decay, "upop_search.interval": interval,
        "finetune.steps": finetune, "finetune.lr": lr, "finetune.warmup": 0, "finetune.min_lr": min_lr,
        "finetune.batch_size": batch, "finetune.weight_decay": weight_decay,
    }  # fmt: skip
