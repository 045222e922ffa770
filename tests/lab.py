"""A laboratory for tests of the command line: a workspace, a tiny model of random weights and a few noisy images."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from vlbench import cli
from vlbench.plugins.table import forget, table

WNIDS = ("n90000000", "n90000001", "n90000002")
CONFIG = {
    "architecture": "deit_small_patch16_224",
    "num_classes": len(WNIDS),
    "model_args": {"img_size": 64, "patch_size": 32, "embed_dim": 16, "depth": 2, "num_heads": 2},
    "label_names": list(WNIDS),
}


@dataclass
class Told:
    """What one command did."""

    code: int
    out: str
    err: str


@dataclass
class Lab:
    """A workspace that is the current folder. `words` describe the cell that its model and data make."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def weights(self) -> Path:
        return self.folder / "weights"

    @property
    def words(self) -> tuple[str, ...]:
        return ("suite=full", "task=imagenet", "model=deit-mini", f"checkpoint={self.weights}")

    def __call__(self, *arguments: str) -> Told:
        """`vlbench ARGUMENTS` in this process (torch is imported once)."""
        forget()
        self.capsys.readouterr()
        self.monkeypatch.setattr(sys, "argv", ["vlbench", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = self.capsys.readouterr()
        code = stopped.value.code
        return Told(code if isinstance(code, int) else int(code is not None), out, err)

    def run(self, *arguments: str) -> Told:
        """`vlbench run` of the tiny cell with more words or flags."""
        return self("run", *self._with(*arguments))

    def _with(self, *arguments: str) -> list[str]:
        """The cell's words and these: later words win."""
        given: dict[str, str] = {}
        for word in (*self.words, *(a for a in arguments if not a.startswith("--"))):
            key, _, value = word.partition("=")
            given[key] = value
        flags = [a for a in arguments if a.startswith("--")]
        return [*(f"{k}={v}" for k, v in given.items()), *flags]

    def refused(self, *arguments: str) -> str:
        """The sentence of a command that must exit with 2 and write nothing at all."""
        before = self.listing()
        told = self(*arguments)
        assert told.code == 2, told
        assert told.err.startswith("vlbench: "), told
        assert "Traceback" not in told.err
        assert not told.out, told
        assert self.listing() == before
        return told.err.removeprefix("vlbench: ").rstrip("\n")

    def refused_run(self, *words: str) -> str:
        return self.refused("run", *self._with(*words))

    def listing(self) -> dict[str, bytes | None]:
        """Every file with its content, and every folder, of the workspace."""
        files = sorted(p for p in self.folder.rglob("*") if "__pycache__" not in p.parts)
        return {str(p): p.read_bytes() if p.is_file() else None for p in files}

    def plug(self, path: str, text: str) -> Path:
        """A file of the workspace, in methods/, tasks/ or registry/."""
        file = self.folder / path
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
        forget()
        return file


def method_file(name: str, *, constant: float = 1.0, title: str = "Mine", before: str = "", options: str = "") -> str:
    """Source of a pruner by score with a constant in its formula."""
    return f'''"""A method of a stranger."""

from pydantic import Field
from torch import Tensor

from vlbench.method import method
from vlbench.pruning.scoring import ScoreOptions, ScorePruner
{before}
CONSTANT = {constant}


class Own(ScoreOptions):
    """Options."""
{options}

@method("{name}", title="{title}", role="pruner", patterns=("unstructured", "n:m"))
class Mine(ScorePruner):
    """What it is."""

    Options = Own

    def score(self, weight: Tensor, statistics: object) -> Tensor:
        return (weight * CONSTANT).abs()
'''


def make_data(root: Path, *, train: int = 6, val: int = 2, size: int = 48) -> None:
    """Noise in the layout of ImageNet."""
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for wnid in WNIDS:
            folder = root / split / wnid
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (size, size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{split}_{number}.png")


def make_weights(folder: Path, seed: int = 0) -> None:
    """A model folder with random weights."""
    entry = table("models").get("deit-mini")
    family = entry.load()
    card = next(c for c in family.cards if c.name == "deit-mini")
    torch.manual_seed(seed)
    model = family.build(card, CONFIG, folder)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(model.net.state_dict(), folder / "model.safetensors")


def write_toml(folder: Path, roots: Mapping[str, Path]) -> None:
    lines = [f'{name} = "{path}"' for name, path in roots.items()]
    (folder / "vlbench.toml").write_text("\n".join(["[roots]", *lines]) + "\n")


@contextmanager
def workspace(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], **sizes: int
) -> Iterator[Lab]:
    """The working folder with data (`sizes`: see make_data), weights and a vlbench.toml that names the data."""
    made = Lab(folder, monkeypatch, capsys)
    make_data(made.data, **sizes)
    make_weights(made.weights)
    write_toml(folder, {"imagenet": made.data})
    monkeypatch.chdir(folder)
    monkeypatch.delenv("VLBENCH_DATA", raising=False)
    monkeypatch.setenv("VLBENCH_DEVICE", "")  # what a command asks for ends with the test
    monkeypatch.setenv("VLBENCH_WORKSPACE", str(folder))  # its plug-ins are announced to no user
    forget()
    yield made
    forget()
