"""A model that answers prompts about pictures in memory, as other harnesses ask: greedily, in their own words."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from ..capability import Batch, owners
from ..compression.saved import is_saved, load_model, open_checkpoint
from ..errors import UserError
from ..images.folder import folder_image
from ..images.pipeline import ImageStore, on_device
from ..machine.device import ask_for
from ..model import Model
from ..plugins.table import table
from ..plugins.workspace import named_roots
from ..task import Sample
from ..tensors.locate import locate

WHOLE_TURN = "{}"  # the harness has written the user's turn: a family's own words around a question are left out
LONGEST = 1024  # tokens, where a harness names no bound


class Asked:
    """Answers prompts. model: it can `answer`."""

    def __init__(self, model: Model) -> None:
        if "answer" not in model.card.capabilities:
            raise UserError(f"{model.card.name} answers no questions: it can {', '.join(model.card.capabilities)}.")
        self.model, self.store = model, ImageStore(model.card.image, model.views, keep_bytes=0)

    def answers(
        self, prompts: Sequence[str], pictures: Sequence[Sequence[Image]], *, words: Mapping[str, Any], batch_size: int
    ) -> list[str]:
        """What it writes after each prompt, a user's whole turn, with the pictures that the prompt is about. words: the
        harness's settings of generation (max_new_tokens, num_beams, until). Raises UserError where they ask for draws.
        """
        options = _options(words)
        written: list[str] = []
        with tempfile.TemporaryDirectory(prefix="vlbench-asked-") as folder:
            for start in range(0, len(prompts), batch_size):
                part = slice(start, start + batch_size)
                samples = [
                    Sample(str(number), tuple(_kept(shown, Path(folder), number)), text=text)
                    for number, (text, shown) in enumerate(zip(prompts[part], pictures[part], strict=True), start)
                ]
                written += self._batch(samples, options)
        return [_until(text, words.get("until")) for text in written]

    @torch.inference_mode()
    def _batch(self, samples: Sequence[Sample], options: Mapping[str, Any]) -> list[str]:
        model = self.model
        paths = list(dict.fromkeys(path for sample in samples for path in sample.images))
        row = {path: i for i, path in enumerate(paths)}
        images = on_device(self.store.load(paths), model.card.image, model.device, model.dtype)
        owner = owners([[row[path] for path in sample.images] for sample in samples], model.device)
        sizes = [self.store.sizes[path] for path in paths]
        batch = Batch(samples, images, owner, options, sizes)
        said = model.answer(model.encode(images), batch)  # type: ignore[attr-defined]
        return [str(prediction["answer"]) for prediction in said]


def opened(name: str, *, checkpoint: str = "", device: str = "", precision: str = "fp32") -> Asked:
    """A saved model's folder (runs/RUN/model, or what `vlbench export` wrote), or a model by its name with its own or
    another checkpoint. Raises UserError where there is neither."""
    if device:
        ask_for(device)
    model = load_model(Path(name))[0] if is_saved(Path(name)) else _of_card(name, checkpoint)
    model.place(precision)
    model.net.to(torch.bfloat16 if precision == "bf16" else torch.float32).eval()
    return Asked(model)


def _of_card(name: str, checkpoint: str) -> Model:
    entry = table("models").get(name)
    family = entry.load()
    card = next(card for card in family.cards if card.name == entry.name)
    weights = locate(checkpoint or card.checkpoint, card.revision, named_roots())
    return open_checkpoint(family, replace(card, image=folder_image(card.image, weights)), weights)[0]


def _options(words: Mapping[str, Any]) -> dict[str, Any]:
    """The evaluation settings that mean the same as a harness's words of generation."""
    if words.get("do_sample") and float(words.get("temperature") or 1) > 0:
        raise UserError("answers are written greedily or by beams: leave do_sample and temperature= out.")
    return {
        "decoding": "generate",
        "prompt": WHOLE_TURN,
        "max_length": int(words.get("max_new_tokens") or LONGEST),
        "min_length": int(words.get("min_new_tokens") or 1),
        "beams": int(words.get("num_beams") or 1),
        "length_penalty": float(words.get("length_penalty") or 1.0),
    }


def _kept(pictures: Sequence[Image], folder: Path, number: int) -> list[Path]:
    """The pictures as files without loss: from there on they go the way of every evaluated image."""
    paths = [folder / f"{number}-{place}.png" for place in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        picture.convert("RGB").save(path, compress_level=0)
    return paths


def _until(text: str, ends: str | Sequence[str] | None) -> str:
    """The text before the first of a harness's ends of text."""
    for end in [ends] if isinstance(ends, str) else ends or ():
        if end:
            text = text.split(end, 1)[0]
    return text.strip()
