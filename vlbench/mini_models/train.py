"""python -m vlbench.mini_models.train MODEL: train the weights of a mini model, as they stand in registry/mini.

registry/mini/MODEL/ holds config.json (the architecture), recipe.json (task, steps, learning rate ...) and the
tokenizer's files; this program adds model.safetensors (fp16) and README.md. Seeded and resumable: state is kept in the
cache and the same command goes on where it was killed.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn

from ..capability import capability_of
from ..compression.saved import distinct_tensors
from ..disk.storage import digest, read_json, write_text
from ..evaluation.loop import Evaluator
from ..evaluation.predictions import Predictions
from ..images.pipeline import ImageStore
from ..machine.ui import Screen
from ..mini.world import cache_folder
from ..model import Model, read_config
from ..plugins.table import table
from ..task import Sample, Task
from ..tensors.checkpoint import CheckpointStore
from ..tensors.reading import load_into, read_weights, save_tensors
from ..training.batches import Batches
from ..training.loop import Loop, Schedule
from .lessons import lessons, opened
from .pretrain import pretrain_vision, tokens_of

OF_WORDS = ("word_embeddings.weight", "embed_tokens.weight", "lm_head.weight")  # parameters with a row for each word


class Recipe(Schedule):
    """recipe.json: the schedule, and what it is trained on.

    init_std: of all matrices at the start (the libraries' 0.02 is made for width 768; at width 64 learning takes 2.5
    times as long with it). start_from: a mini model whose parameters are taken over where names and shapes agree, words
    by their text; start_part: those whose names begin so; rename: part of a name there -> what it is called here, in
    one or two places. vision_steps: steps in which the vision tower first learns to name the object on each patch.
    frozen_steps: steps after that in which it stays as it is: trained together from the start, the text's first
    gradients undo what it has learned. frozen_part: what stays, by how the names begin, where it is less than the whole
    image encoder (a Q-Former has to learn with the text). vision_patches: side of the grid of an image's last tokens,
    of a model that makes its own views of an image; 0: the grid is all tokens but the first.
    """

    task: str  # A, or A+B for the train splits of several
    seed: int = 0
    per_image: int = Field(4, ge=1)
    init_std: float = Field(0.1, gt=0)
    start_from: str = ""
    start_part: str = ""
    rename: Mapping[str, Sequence[str]] = Field(default_factory=dict)
    vision_steps: int = Field(0, ge=0)
    frozen_steps: int = Field(0, ge=0)
    frozen_part: str = ""
    frozen_lr: float = Field(2e-3, gt=0)
    vision_patches: int = Field(0, ge=0)


def folder_of(name: str) -> Path:
    """registry/mini/NAME beside the family files."""
    return table("models").get(name).file.parent / "mini" / name


def train(name: str, screen: Screen) -> Path:
    """Train MODEL from nothing and write its weights; returns the folder."""
    folder = folder_of(name)
    recipe = Recipe.model_validate(read_json(folder / "recipe.json"))
    config = read_config(folder)
    cls = table("models").get(name).load()
    card = next(c for c in cls.cards if c.name == name)
    torch.manual_seed(recipe.seed)
    model: Model = cls.build(card, config, folder)
    initialise(model.net, recipe.init_std)
    _take_over(model, folder, recipe)
    _pretrain(model, recipe, screen)
    tasks = [opened(one) for one in recipe.task.split("+")]
    samples = list(lessons(recipe.task.split("+"))) if len(tasks) > 1 else tasks[0].samples(tasks[0].split_for("train"))
    store = ImageStore(card.image, model.views)
    if recipe.frozen_steps:
        names = frozenset(n for n in encoder_parameters(model) if n.startswith(recipe.frozen_part))
        frozen = recipe.model_copy(update={"steps": recipe.frozen_steps, "lr": recipe.frozen_lr, "decay": "constant"})
        _stage(f"{name}-frozen", model, samples, store, frozen, screen, frozen=names)
    losses = _stage(name, model, samples, store, recipe, screen)
    save_tensors(
        folder / "model.safetensors",
        {k: v.half() if v.is_floating_point() else v for k, v in distinct_tensors(model.net).items()},
    )
    load_into(model.net, read_weights(folder))  # what is measured is what is stored: rounded to fp16
    metrics: dict[str, float] = {}
    for task in tasks:
        values = evaluate(model, task, store)
        metrics |= {f"{task.name} {key}": value for key, value in values.items()} if len(tasks) > 1 else values
    write_text(folder / "README.md", readme(name, model, recipe, losses, metrics))
    for stage in (name, f"{name}-frozen"):
        CheckpointStore(cache_folder() / "train_mini" / stage, {}).clear()
    return folder


def _stage(
    stage: str,
    model: Model,
    samples: Sequence[Sample],
    store: ImageStore,
    recipe: Recipe,
    screen: Screen,
    frozen: frozenset[str] = frozenset(),
) -> list[float]:
    """One training loop over the train split, resumable; parameters in `frozen` stay as they are."""
    for key, parameter in model.net.named_parameters():
        parameter.requires_grad_(key not in frozen)
    batches = Batches(samples, store, size=recipe.batch_size, seed=recipe.seed, per_image=recipe.per_image)
    identity = {"config": digest(model.config), "recipe": recipe.model_dump()}
    state = CheckpointStore(cache_folder() / "train_mini" / stage, identity, every_seconds=60)
    loop = Loop(
        model.net,
        lambda batch: capability_of(model.card.capabilities[0]).loss(model, batch),
        batches,
        recipe,
        seed=recipe.seed,
        store=state,
        progress=lambda done, total, text: screen.progress(f"train {stage}", done, total, text),
    )
    losses = loop.run()
    loop.save(recipe.steps)  # a later stage that is killed does not repeat this one
    return losses


def encoder_parameters(model: Model) -> frozenset[str]:
    """Names of the parameters that stage one (encode) uses: those that get a gradient from it."""
    size = model.card.image.size
    torch.stack(tokens_of(model, torch.zeros(1, 3, size, size, dtype=torch.uint8))).sum().backward()
    used = frozenset(name for name, parameter in model.net.named_parameters() if parameter.grad is not None)
    model.net.zero_grad(set_to_none=True)
    return used


def _take_over(model: Model, folder: Path, recipe: Recipe) -> None:
    """Start from another mini model, as recipe.start_from says. What it does not have stays as it was drawn."""
    if not recipe.start_from:
        return
    source = folder_of(recipe.start_from)
    parameters = dict(model.net.named_parameters())
    with torch.no_grad():
        for key, value in read_weights(source).items():
            if not key.startswith(recipe.start_part):
                continue
            for name in _renamed(key, recipe.rename):
                if name.endswith(OF_WORDS) and name in parameters and parameters[name].shape[1:] == value.shape[1:]:
                    _take_words(parameters[name], value, _words(folder), _words(source))
                    if name.endswith("word_embeddings.weight"):  # BLIP's two special words come last
                        parameters[name][-2:] = value[-2:]
                elif name in parameters and parameters[name].shape == value.shape:
                    parameters[name].copy_(value)


def _renamed(key: str, rename: Mapping[str, Sequence[str]]) -> list[str]:
    """What a parameter is called here, without regard to `rename` where it says nothing of it."""
    for part, places in rename.items():
        if part in key:
            return [key.replace(part, place) for place in places]
    return [key]


def _words(folder: Path) -> dict[str, int]:
    """Word -> number, of a tokenizer in a model folder."""
    vocabulary: dict[str, int] = read_json(folder / "tokenizer.json")["model"]["vocab"]
    return vocabulary


def _take_words(own: nn.Parameter, theirs: Tensor, words: Mapping[str, int], known: Mapping[str, int]) -> None:
    """The rows of the words that both have; words with capitals begin as those without."""
    for word, number in words.items():
        if (row := known.get(word, known.get(word.lower()))) is not None:
            own[number] = theirs[row]


def _pretrain(model: Model, recipe: Recipe, screen: Screen) -> None:
    """The vision stage, once: its result is kept in the cache, so that a killed run does not repeat it."""
    if not recipe.vision_steps:
        return
    key = digest([model.config, recipe.vision_steps, recipe.seed, recipe.init_std])[:12]
    file = cache_folder() / "train_mini" / f"{model.card.name}-vision-{key}.safetensors"
    if not file.is_file():
        name = f"pretrain {model.card.name}"
        pretrain_vision(
            model, recipe.vision_steps, recipe.seed, lambda *news: screen.progress(name, *news),
            patches=recipe.vision_patches,
        )  # fmt: skip
        file.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(file.with_suffix(".tmp"), distinct_tensors(model.net))
        file.with_suffix(".tmp").replace(file)
    load_into(model.net, read_weights(file))


def initialise(net: nn.Module, std: float) -> None:
    """Normal matrices; everything else keeps the library's start."""
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, std)


def evaluate(model: Model, task: Task, store: ImageStore) -> dict[str, float]:
    """Metrics on the select split (nothing is tuned on report); none where the task has no such split."""
    split = task.roles().get("select")
    if split is None:
        return {}
    samples, settings = task.samples(split), {**task.settings(split), "labelled": True}
    file = cache_folder() / "train_mini" / f"{model.card.name}-{os.getpid()}.jsonl"
    lines = Evaluator(model, task, store, settings=settings, batch_size=256).run(samples, Predictions(file))
    file.unlink()
    metrics: dict[str, float] = task.aggregate(samples, [line["score"] for line in lines])
    return metrics


def readme(name: str, model: Model, recipe: Recipe, losses: list[float], metrics: dict[str, float]) -> str:
    """The weights' card."""
    size = sum(p.numel() for p in model.net.parameters())
    tasks = recipe.task.replace("+", ", ")
    table = "\n".join(f"| {k} | {v:.2f} |" for k, v in metrics.items())
    return f"""# {name}

{model.card.title}. {size:,} parameters, fp16, Apache-2.0.
Trained on the train split of the mini world's {tasks} by `python -m vlbench.mini_models.train {name}`:
{_stages(recipe)}{recipe.steps} steps of {recipe.batch_size} samples
(AdamW, peak learning rate {recipe.lr}, seed {recipe.seed}; last loss {losses[-1]:.3f}).
For learning, testing and debugging methods: its ranks do not predict those of full-size models.

On the select split (cut from train, not trained on):

| metric | value |
|---|---|
{table}
"""


def _stages(recipe: Recipe) -> str:
    """What came before the last stage."""
    vision = f"{recipe.vision_steps} steps in which every patch names its object, " if recipe.vision_steps else ""
    if recipe.start_from:
        vision = f"started from {recipe.start_from}{' (' + recipe.start_part + '*)' if recipe.start_part else ''}, "
    what = f"{recipe.frozen_part}*" if recipe.frozen_part else "the image encoder"
    frozen = f"{recipe.frozen_steps} steps on the task with {what} frozen, " if recipe.frozen_steps else ""
    return f"{vision}{frozen}{'then ' if vision or frozen else ''}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m vlbench.mini_models.train", description=__doc__)
    parser.add_argument("model")
    with Screen() as screen:
        print(f"wrote {train(parser.parse_args().model, screen)}")


if __name__ == "__main__":
    main()
