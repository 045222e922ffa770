"""Other harnesses ask a saved model; the oracle is the evaluation loop's answer to the same words. Their packages are
used where they are installed; else modules that have as much of their interface as they call us by."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from tests import minis
from vlbench.capability import Batch
from vlbench.compression.saved import save_model
from vlbench.compression.state import Compression
from vlbench.errors import UserError
from vlbench.evaluators.asking import opened
from vlbench.evaluators.lmms import CLASS, manifest
from vlbench.images.pipeline import ImageStore, on_device
from vlbench.task import Sample

MODEL = "qwen-mini"


class Manifest(SimpleNamespace):
    pass


class Lmms:
    def __init__(self) -> None:
        self.task_dict: dict[str, Any] = {}


class BaseModel:
    def __init__(self) -> None:
        self.dump_image_func = None

    def generate(self, message: Any, dataset: str | None = None) -> str:
        return str(self.generate_inner(message, dataset))  # type: ignore[attr-defined]


STAND_INS = {
    "lmms_eval.models.registry_v2": {"ModelManifest": Manifest},
    "lmms_eval.api.model": {"lmms": Lmms},
    "vlmeval.vlm.base": {"BaseModel": BaseModel},
}


INSTALLED = [name for name in ("lmms_eval", "vlmeval") if importlib.util.find_spec(name) is not None]


@pytest.fixture(autouse=True)
def packages(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, content in STAND_INS.items():
        parts = name.split(".")
        if parts[0] not in INSTALLED:
            for i in range(1, len(parts)):
                monkeypatch.setitem(sys.modules, ".".join(parts[:i]), ModuleType(".".join(parts[:i])))
            module = ModuleType(name)
            vars(module).update(content)
            monkeypatch.setitem(sys.modules, name, module)
    yield
    for name in [n for n in sys.modules if n in ("vlbench.evaluators.lmms_model", "vlbench.evaluators.vlmeval")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = minis.opened(MODEL)
    place = tmp_path_factory.mktemp("saved") / "model"
    save_model(place, model, Compression())
    return place


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    place = tmp_path_factory.mktemp("pictures")
    for number, colour in enumerate(("red", "blue", "green")):
        Image.new("RGB", (64, 48), colour).save(place / f"{number}.png")
    return sorted(place.iterdir())


QUESTIONS = ("what color is the ball ?", "is there a dog ?", "how many cats are there ?")


@pytest.fixture(scope="module")
def said(pictures: list[Path]) -> list[str]:
    """By the model itself, one question at a time."""
    model = minis.opened(MODEL)
    model.net.eval()
    store = ImageStore(model.card.image, model.views)
    words = {"decoding": "generate", "prompt": "{}", "max_length": 8, "min_length": 1, "beams": 1}
    answers = []
    for path, text in zip(pictures, QUESTIONS, strict=True):
        images = on_device(store.load([path]), model.card.image, model.device, model.dtype)
        batch = Batch([Sample("0", (path,), text=text)], images, torch.tensor([[0]]), words)
        with torch.inference_mode():
            answers += [line["answer"] for line in model.answer(model.encode(images), batch)]  # type: ignore[attr-defined]
    assert len(set(answers)) > 1
    return answers


def test_lmms_eval_makes_the_class_and_asks_it(folder: Path, pictures: list[Path], said: list[str]) -> None:
    """Requests of different words, in an order of their own; where a picture stands in the prompt is told apart."""
    declared = manifest()
    assert (declared.model_id, declared.simple_class_path) == ("vlbench", CLASS)
    module, _, name = CLASS.rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    assert cls.is_simple
    model = cls(str(folder), batch_size="2", device="cuda:0", max_batch_size=None)
    model.task_dict = {"mine": {"test": [Image.open(path) for path in pictures]}}

    def request(number: int, **words: Any) -> Any:
        text = f"<image>\n{QUESTIONS[number]}"
        return SimpleNamespace(args=(text, words, lambda shown: [shown], number, "mine", "test"))

    greedy = {"max_new_tokens": 8, "temperature": 0, "do_sample": False}
    requests = [request(2, **greedy), request(0, max_new_tokens=8, until=[said[0][:2]]), request(1, **greedy)]
    assert model.generate_until(requests) == [said[2], "", said[1]]
    with pytest.raises(UserError, match="leave do_sample and temperature= out"):
        model.generate_until([request(0, do_sample=True, temperature=0.7)])
    with pytest.raises(TypeError, match="pretraned"):
        cls(pretraned=str(folder))
    for ask in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(NotImplementedError):
            ask([])


def test_vlmevalkit_asks_with_files(folder: Path, pictures: list[Path], said: list[str]) -> None:
    cls = importlib.import_module("vlbench.evaluators.vlmeval").VLBench
    model = cls(str(folder), max_new_tokens=8)
    for path, text, answer in zip(pictures, QUESTIONS, said, strict=True):
        parts = [{"type": "image", "value": str(path)}, {"type": "text", "value": text}]
        assert model.generate(parts, dataset="mine") == answer


def test_a_name_is_a_model_of_the_registry_and_others_are_told(pictures: list[Path], said: list[str]) -> None:
    dense = opened(MODEL)
    assert dense.answers([QUESTIONS[1]], [[Image.open(pictures[1])]], words={"max_new_tokens": 8}, batch_size=1) == [
        said[1]
    ]
    with pytest.raises(UserError, match="deit-mini answers no questions: it can classify"):
        opened("deit-mini")
    with pytest.raises(UserError, match="there is no model 'nowhere/model'"):
        opened("nowhere/model")
