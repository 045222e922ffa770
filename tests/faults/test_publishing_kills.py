"""kill -9 before every change of a file that `submit` and `leaderboard` make, then the same command again: the bytes of
a life that nobody disturbed, and nothing half-written in between."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.faults.lives import Place
from vlbench.plugins.workspace import boards_folder

pytestmark = pytest.mark.faults
EVERY = 1 if "VLBENCH_FAULTS" in os.environ else 5  # of the steps, how many are passed over in the short form
COMMITTED = ("dense-", "magnitude-0.5-", "wanda-0.5-s0-", "uniform-0.5-")


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def kill_at_every_step(place: Place, words: list[str], folder: Path, first: dict[str, bytes]) -> int:
    """Kills; `first` is what lies in the folder before the command, which is put back each time."""

    def put_back() -> None:
        shutil.rmtree(folder)
        for name, content in first.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)

    calm = place.command(words, folder)
    assert calm.code == 0, calm.said
    wanted = files(folder)
    assert wanted != first
    kills = 0
    for step in range(1, calm.steps + 1, EVERY):
        put_back()
        life = place.command(words, folder, kill_step=step)
        assert life.code == -signal.SIGKILL
        kills += 1
        for name, content in files(folder).items():
            shown = not any(part.startswith(".") for part in Path(name).parts)
            assert not shown or content in (first.get(name), wanted.get(name)), f"step {step}: {name} is half-written"
        again = place.command(words, folder)
        assert again.code == 0, again.said
        left = {name: content for name, content in files(folder).items() if not Path(name).name.startswith(".")}
        assert left == wanted, f"step {step}"
    return kills


def test_a_leaderboard_that_is_killed_is_made_again(place: Place, tmp_path: Path) -> None:
    results = tmp_path / "boards" / "results" / "mini"
    results.mkdir(parents=True)
    for file in (boards_folder() / "results" / "mini").glob("mini-imagenet-deit-mini-*.json"):
        if any(f"-deit-mini-{name}" in file.name for name in COMMITTED):
            shutil.copyfile(file, results / file.name)
    folder = tmp_path / "boards"
    kills = kill_at_every_step(place, ["leaderboard", "--folder", str(folder)], folder, files(folder))
    assert kills >= 2


def test_a_submission_that_is_killed_is_made_again(place: Place, tmp_path: Path) -> None:
    runs, folder = tmp_path / "runs", tmp_path / "boards"
    life = place.command(["run", "task=imagenet", "method=magnitude", "sparsity=0.5", "--runs", str(runs)], runs)
    assert life.code == 0, life.said
    (run,) = (p.name for p in runs.glob("*magnitude*"))
    (folder / "results" / "mini").mkdir(parents=True)
    (folder / "results" / "mini" / "other.json").write_text(json.dumps({}))
    words = ["submit", run, "--runs", str(runs), "--folder", str(folder)]
    assert kill_at_every_step(place, words, folder, files(folder)) >= 1
