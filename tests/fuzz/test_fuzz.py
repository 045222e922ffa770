"""Oracle: whatever a person, a file or a stranger says is understood or refused in one sentence; nothing else is
raised, nothing is written, and nobody waits for ten seconds.

The short form is the suite's. VLBENCH_FUZZ=10000 is the long one, with new draws every time.
"""

from __future__ import annotations

import importlib
import json
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from tests.leaderboard.factory import record
from tests.tasks.readers import READERS, put
from vlbench.cell.resolve import resolve
from vlbench.cell.words import parse
from vlbench.compression.saved import open_checkpoint
from vlbench.errors import UserError
from vlbench.images.folder import folder_image
from vlbench.leaderboard.rows import rows
from vlbench.plugins.table import table
from vlbench.plugins.workspace import _read_roots
from vlbench.records.record import read_record

EXAMPLES = int(os.environ.get("VLBENCH_FUZZ", "0"))
# No time is asserted but in the long form, on a machine that has nothing else to do.
fuzz = settings(
    max_examples=EXAMPLES or 25, deadline=10_000 if EXAMPLES else None, derandomize=not EXAMPLES, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
T = TypeVar("T")

PLAIN = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=12)
JSON = st.recursive(
    PLAIN | st.sampled_from(["", "../x", "/etc/passwd", "\0", "x" * 400, "1e400", -1, 0, 10**30, "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


def told(work: Callable[[], T]) -> T | None:
    """What it gives, or None where it refuses in a sentence that a terminal can hold. Anything else is raised."""
    try:
        return work()
    except UserError as error:
        if not 0 < len(str(error).strip()) < 20_000:
            raise AssertionError("that is no sentence") from error
        return None


def mutated(draw: st.DrawFn, tree: Any) -> Any:
    """The tree with one to three of its values, or what holds them, replaced, dropped or doubled."""
    tree = json.loads(json.dumps(tree))
    for _ in range(draw(st.integers(1, 3))):
        at, key = {"root": tree}, "root"
        while isinstance(at[key], dict | list) and at[key] and draw(st.integers(0, 5)):
            at = at[key]
            key = draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
        how = draw(st.sampled_from(["put", "put", "put", "drop", "double"]))
        if how == "drop" and key != "root":
            del at[key]
        elif how == "double" and isinstance(at, list):
            at.append(at[key])
        else:
            at[key] = draw(JSON)
        if key == "root":
            return at.get("root")
    return tree


@st.composite
def changed(draw: st.DrawFn, tree: Any) -> Any:
    return mutated(draw, tree)


# Words -------------------------------------------------------------------------------------------------------------

KEYS = (
    *("task", "method", "model", "suite", "recipe", "seed", "split", "checkpoint", "label", "limit", "precision"),
    *("sparsity", "steps", "upop_search.steps", "finetune", "task.decoding", "evaluation.batch_size", "calibration"),
    *("batch_size", "preprocessing", "window", "k_test", "vision", "towers", "ties", "blind", ".", "a.b.c", "="),
)
VALUES = (
    *("imagenet", "vqav2", "ade20k", "coco_retrieval", "upop", "wanda+lora", "magnitude", "dense+finetune"),
    *("deit-mini", "blip-vqa-mini", "mini", "full", "paper", "upop-code", "off", "0.5", "2:4", "2x", "inf", "nan"),
    *("-1", "0", "", "true", "[1]", "{}", "../x", "~nouser", "0x1", "1_0", "+", "a+", "x" * 300, "sparsegpt", "1e400"),
    "\u0663",  # a digit, and none of ours
)


@fuzz
@given(st.lists(st.tuples(st.sampled_from(KEYS) | st.text(max_size=8), st.sampled_from(VALUES) | st.text(max_size=12))))
def test_words(words: list[tuple[str, str]]) -> None:
    told(lambda: resolve(parse(f"{key}={value}" for key, value in words)))


@fuzz
@given(st.sampled_from(sorted(table("tasks").entries)), st.sampled_from(sorted(table("methods").entries)), st.data())
def test_values_of_options_that_there_are(task: str, method: str, data: st.DataObject) -> None:
    """The option exists, so that its value is what is judged."""
    options: dict[str, Any] = {}
    for name in (task, method):
        kind = "tasks" if name == task else "methods"
        fields = getattr(table(kind).get(name).load(), "Options", None)  # type: ignore[arg-type]
        options |= dict.fromkeys(fields.model_fields if fields is not None else ())
    key = data.draw(st.sampled_from(sorted(options) or ["seed"]))
    value = data.draw(st.sampled_from(VALUES) | st.text(max_size=10) | PLAIN.map(str))
    told(lambda: resolve(parse([f"task={task}", f"method={method}", f"{key}={value}"])))


# Files -------------------------------------------------------------------------------------------------------------

TOML = (
    st.text(max_size=60)
    | st.builds("[roots]\n{} = {}\n".format, st.sampled_from(["imagenet", "a b", '"x"', ""]), JSON.map(json.dumps))
    | st.builds("[roots]\nimagenet = {}\n".format, st.text(max_size=40).map(repr))
    | st.integers(1, 2000).map(lambda depth: "a = " + "[" * depth)
)


@fuzz
@given(TOML)
def test_a_workspaces_file(text: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "vlbench.toml"
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        told(lambda: _read_roots(file))
        assert list(Path(name).iterdir()) == [file]


def _listing(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


@fuzz
@given(st.sampled_from(sorted(READERS)), st.data())
def test_annotations(name: str, data: st.DataObject) -> None:
    reader = READERS[name]
    with tempfile.TemporaryDirectory() as folder:
        file = data.draw(st.sampled_from(sorted(reader.files)))
        content = data.draw(changed(reader.files[file]))
        task = reader.write(Path(folder), lambda files: put(files, (file,), content))
        if data.draw(st.integers(0, 9)) == 0:  # cut short, or no text
            bytes_ = (Path(folder) / file).read_bytes()
            (Path(folder) / file).write_bytes(bytes_[: data.draw(st.integers(0, len(bytes_)))] + b"\xff")
        before = _listing(Path(folder))
        samples = told(lambda: [] if task.missing(reader.split) else task.samples(reader.split))
        assert all(isinstance(s.id, str) and isinstance(s.text, str) for s in samples or ())
        assert _listing(Path(folder)) == before


CONFIG: dict[str, Any] = {
    "architecture": "deit_tiny_patch16_224", "num_classes": 3, "label_names": ["a", "b", "c"],
    "model_args": {"img_size": 32, "patch_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2},
    "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 0.9, "input_size": [3, 32, 32],
                       "interpolation": "bicubic"},
}  # fmt: skip


@cache
def _weights() -> dict[str, torch.Tensor]:
    net = timm.create_model(CONFIG["architecture"], num_classes=3, **CONFIG["model_args"])
    return dict(net.state_dict())


@settings(fuzz, max_examples=EXAMPLES or 10)  # each builds a network
@given(changed(CONFIG))
def test_a_checkpoints_configuration(config: Any) -> None:
    family = importlib.import_module("vlbench.registry.deit").DeiT
    card = next(card for card in family.cards if card.name == "deit-tiny")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_file(_weights(), folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config))
        before = _listing(folder)

        def opened() -> Any:
            image = folder_image(card.image, folder)
            model, _ = open_checkpoint(family, card, folder)
            return image, model

        told(opened)
        assert _listing(folder) == before


RECORD = record("magnitude", sparsity=0.5).model_dump(mode="json")


@fuzz
@given(changed(RECORD))
def test_results(content: Any) -> None:
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "result.json"
        file.write_text(json.dumps(content))
        result = told(lambda: read_record(file))
        if result is not None:
            told(lambda: rows([result]))
        assert list(Path(name).iterdir()) == [file]
