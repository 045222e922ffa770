"""Truncated, bit-flipped and swapped files of a half-finished cell: told with their names, or made again; never used.

The seals and digests of the files, and the cell's sums.json, say which file it is.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.faults.lives import Place, final_files

pytestmark = pytest.mark.faults
TIMES = max(1, int(os.environ.get("VLBENCH_FAULTS", "6")) // 8)
SEED = int(os.environ.get("VLBENCH_FAULTS_SEED", "20"))
Damage = Callable[[bytes, random.Random], bytes]


def truncated(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data) - 1)]


def flipped(data: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << draw.randrange(8))]) + data[place + 1 :]


DAMAGES: dict[str, Damage] = {"truncated": truncated, "flipped": flipped}
FINISHED = ("predictions.jsonl", "result.json", "model/model.safetensors", "model/vlbench.json", "model/config.json")
UNFINISHED = ("predictions.part", "checkpoint/finetune/meta.json", "checkpoint/finetune/state.safetensors",
              "checkpoint/after-0-magnitude/model.safetensors", "checkpoint/after-0-magnitude/masks.bin")  # fmt: skip
METHOD = "magnitude+finetune"


def cases(names: Sequence[str]) -> list[tuple[str, str]]:
    """Each file with each damage; in the short form with one of them."""
    everything = list(itertools.product(names, DAMAGES))
    return everything if "VLBENCH_FAULTS" in os.environ else everything[::3]


def cell_of(runs: Path) -> Path:
    (found,) = runs.glob("*-magnitude*")
    return found


def disturbed_and_mended(place: Place, runs: Path, file: Path, damaged: bytes) -> None:
    """The command names the damaged file, or does its work again; with the file as it was it ends well."""
    calm, whole = place.undisturbed(METHOD), file.read_bytes()
    if damaged == whole:
        return
    file.write_bytes(damaged)
    life = place.live(METHOD, runs)
    if life.code == 0:
        assert final_files(runs) == final_files(calm), f"{file} was taken for whole"
        return
    assert life.code == 2, life.said
    (line,) = [line for line in life.said.splitlines() if line.startswith("vlbench: ")]
    told = file if file.parent.parent.name != "checkpoint" or "after" in file.parent.name else file.parent
    assert str(told) in line, line
    file.write_bytes(whole)
    assert place.live(METHOD, runs).code == 0
    assert final_files(runs) == final_files(calm)


@pytest.mark.parametrize(("name", "how"), cases(FINISHED))
def test_a_damaged_finished_file(place: Place, runs: Path, name: str, how: str) -> None:
    draw = random.Random(f"{SEED} {name} {how}")
    for number in range(TIMES):
        folder = runs / str(number)
        shutil.copytree(place.undisturbed(METHOD), folder)
        if name != "result.json":  # where it stands nothing else is read
            (cell_of(folder) / "result.json").unlink()
        if name.startswith("model"):  # the same for the model's
            (cell_of(folder) / "predictions.jsonl").unlink()
        file = cell_of(folder) / name
        disturbed_and_mended(place, folder, file, DAMAGES[how](file.read_bytes(), draw))


@pytest.fixture(scope="module")
def stopped(place: Place, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """File of an unfinished cell -> a folder of runs that was killed when it had that file."""
    folder = tmp_path_factory.mktemp("stopped")
    found: dict[str, Path] = {}
    for pattern in (r"-magnitude.*predictions\.part", r"-magnitude.*finetune\.tmp/\.meta"):
        runs = folder / str(len(found))
        assert place.live(METHOD, runs, kill_at=(pattern, 5)).code == -signal.SIGKILL
        held = [name for name in UNFINISHED if (cell_of(runs) / name).is_file()]
        found.update(dict.fromkeys(held, runs))
    assert set(found) == set(UNFINISHED)
    return found


@pytest.mark.parametrize(("name", "how"), cases(UNFINISHED))
def test_a_damaged_unfinished_file(place: Place, stopped: dict[str, Path], runs: Path, name: str, how: str) -> None:
    draw = random.Random(f"{SEED} {name} {how}")
    for number in range(TIMES):
        folder = runs / str(number)
        shutil.copytree(stopped[name], folder)
        file = cell_of(folder) / name
        disturbed_and_mended(place, folder, file, DAMAGES[how](file.read_bytes(), draw))


def changed(file: Path, before: str, after: str) -> None:
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after, 1))


@pytest.mark.parametrize(
    ("method", "name", "before", "after"),
    [
        (METHOD, "result.json", '"samples"', '"sample"'),
        (METHOD, "predictions.jsonl", '"status"', '"stat"'),
        (METHOD, "model/vlbench.json", '"steps": 16', '"steps": 17'),
        (METHOD, "model/config.json", "16", "32"),
        ("dense", "result.json", '"samples"', '"sample"'),
        ("dense", "predictions.jsonl", '"score":[0.0,', '"score":[1.0,'),
    ],
)
def test_what_is_valid_and_says_something_else_is_refused(
    place: Place, runs: Path, method: str, name: str, before: str, after: str
) -> None:
    """The cell's own files, and those of the dense model that it is compared with."""
    shutil.copytree(place.undisturbed(METHOD), runs)
    if (method, name) != (METHOD, "result.json"):  # where it stands nothing else is read
        (cell_of(runs) / "result.json").unlink()
    (folder,) = runs.glob("*-dense-*") if method == "dense" else [cell_of(runs)]
    changed(folder / name, before, after)
    life = place.live(METHOD, runs)
    assert life.code == 2, life.said
    assert [str(folder / name) in line for line in life.said.splitlines()] == [True], life.said


def test_predictions_of_a_deleted_model_are_not_taken_over(place: Place, runs: Path) -> None:
    """On a GPU the model made in its place is another one."""
    shutil.copytree(place.undisturbed(METHOD), runs)
    cell = cell_of(runs)
    (cell / "result.json").unlink()
    shutil.rmtree(cell / "model")
    changed(cell / "predictions.jsonl", '"score":[0.0,', '"score":[1.0,')
    assert place.live(METHOD, runs).code == 0
    assert final_files(runs) == final_files(place.undisturbed(METHOD))


@pytest.mark.parametrize("name", ["predictions.jsonl", "result.json", "model", "sums.json"])
def test_another_cells_file_is_refused(place: Place, runs: Path, name: str) -> None:
    """wanda's has the same model, the same samples, and is as whole as the cell's own."""
    shutil.copytree(place.undisturbed(METHOD), runs)
    (theirs,) = place.undisturbed("wanda").glob("*-wanda-*")
    cell = cell_of(runs)
    if name != "result.json":
        (cell / "result.json").unlink()
    if name == "model":
        shutil.rmtree(cell / name)
        shutil.copytree(theirs / name, cell / name)
    else:
        shutil.copy(theirs / name, cell / name)
    life = place.live(METHOD, runs)
    assert life.code == 2, life.said
    (line,) = [line for line in life.said.splitlines() if line.startswith("vlbench: ")]
    assert str(cell / name) in line


@pytest.mark.parametrize("change", [('"n90000000"', '"n90000001"'), ('"status":"ok"', '"status":"OK"')])
def test_a_line_that_says_something_else_is_predicted_again(
    place: Place, stopped: dict[str, Path], runs: Path, change: tuple[str, str]
) -> None:
    """It is as valid as the line before, and only its checksum is wrong."""
    shutil.copytree(stopped["predictions.part"], runs)
    file = cell_of(runs) / "predictions.part"
    text = file.read_text()
    assert change[0] in text
    file.write_text(text.replace(*change))
    assert place.live(METHOD, runs).code == 0
    assert final_files(runs) == final_files(place.undisturbed(METHOD))


def test_another_cells_unfinished_predictions_are_made_again(
    place: Place, stopped: dict[str, Path], runs: Path
) -> None:
    """The dense model's, of the same samples."""
    shutil.copytree(stopped["predictions.part"], runs)
    theirs = runs.with_name("theirs")
    assert place.live("dense", theirs, kill_at=(r"-dense.*predictions\.part", 9)).code == -signal.SIGKILL
    (part,) = theirs.glob("*-dense-*/predictions.part")
    shutil.copy(part, cell_of(runs) / "predictions.part")
    assert place.live(METHOD, runs).code == 0
    assert final_files(runs) == final_files(place.undisturbed(METHOD))
