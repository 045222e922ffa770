"""Samples of several images and models that read one: a sentence before anything is written, and a way that works."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.lab import Lab, write_toml
from tests.tasks.tables import cell, prepared, question, write_tsv
from vlbench.images import kept, pipeline

MINI = Path(__file__).resolve().parents[2] / "registry" / "mini"


@pytest.mark.parametrize("model", ["llava-mini", "blip-vqa-mini"])
def test_images_are_never_left_out_unsaid(model: str, lab: Lab) -> None:
    """MMMU with a question that shows two pictures."""
    root = lab.folder / "mmmu"
    root.mkdir()
    rows = [question(n, id=f"validation_Art_{n}", split="validation", category="Art") for n in (1, 2)]
    write_tsv(
        root / "MMMU_DEV_VAL.tsv", [{**rows[0], "image": repr([cell(1), cell(2)])}, {**rows[1], "image": cell(3)}]
    )
    prepared("mmmu", root, "val")
    write_toml(lab.folder, {"mmmu": root})
    words = ["run", "suite=full", "task=mmmu", f"model={model}", f"checkpoint={MINI / model}"]
    refused = lab(*words)
    assert refused.code == 2
    assert f"1 samples of task=mmmu show up to 2 images, and {model} reads 1 at once: images=first shows" in refused.err
    assert not list(lab.folder.glob("runs/*/cell.json"))
    taken = lab(*words, "images=first")
    assert taken.code == 0, taken.err
    assert len(list(lab.folder.glob("runs/*/result.json"))) == 1


def test_cells_after_the_first_read_what_it_decoded(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Predictions are those of runs that keep nothing, to the byte; and a budget that is no number is refused."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("VLBENCH_CACHE", str(cache))
    monkeypatch.setattr(kept, "SMALLEST", 0)
    decoded: list[Path] = []
    plain = pipeline.decode
    monkeypatch.setattr(pipeline, "decode", lambda path, content=None: (decoded.append(path), plain(path, content))[1])

    def predictions(gigabytes: str) -> dict[str, bytes]:
        monkeypatch.setenv(kept.VARIABLE, gigabytes)
        shutil.rmtree(lab.folder / "runs", ignore_errors=True)
        lab.run("method=magnitude", "sparsity=0.5")
        return {p.parent.name: p.read_bytes() for p in lab.folder.glob("runs/*/predictions.jsonl")}

    monkeypatch.setenv(kept.VARIABLE, "much")
    assert "VLBENCH_PIXELS_GB is 'much'" in lab.refused_run("method=magnitude", "sparsity=0.5")
    wanted = predictions("0")
    assert len(wanted) == 2
    assert predictions("1") == wanted
    assert list(cache.glob("pixels/*/*/*"))
    decoded.clear()
    assert predictions("1") == wanted
    assert not decoded
