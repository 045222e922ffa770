"""A disk that is full from a random moment on, a limit on the size of files, folders that cannot be written."""

from __future__ import annotations

import errno
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.lives import METHODS, Life, Place, final_files, half_written

pytestmark = pytest.mark.faults
TIMES = max(2, int(os.environ.get("VLBENCH_FAULTS", "6")) // 4)
SEED = int(os.environ.get("VLBENCH_FAULTS_SEED", "20"))


def one_sentence(life: Life) -> str:
    assert life.code == 2, (life.code, life.said)
    assert "Traceback" not in life.said
    (line,) = [line for line in life.said.splitlines() if line.startswith("vlbench: ")]
    return line


def test_a_disk_that_fills_at_a_random_moment_costs_a_sentence(place: Place, runs: Path) -> None:
    """Everything that needs room fails from that moment on. With room again the same words end as if undisturbed."""
    draw = random.Random(SEED)
    told = 0
    for number in range(TIMES):
        method = list(METHODS)[number % len(METHODS)]
        calm = place.undisturbed(method)
        folder = runs / str(number)
        step = draw.randint(1, place.calm[method].steps)
        life = place.live(method, folder, refuse_step=step, errno=errno.ENOSPC)
        if life.code != 0:  # nothing but removals came after the step
            assert "No space left on device" in one_sentence(life), (number, step)
            assert str(folder) in one_sentence(life)
            told += 1
        assert not half_written(folder)
        assert not list(folder.rglob(".*.tmp")), "what fills a disk is given back"
        assert place.live(method, folder).code == 0
        assert final_files(folder) == final_files(calm), (number, step)
    assert told


def test_a_disk_that_is_full_only_when_it_is_synced_costs_a_sentence(place: Place, runs: Path) -> None:
    calm = place.undisturbed("upop")
    for moment in (1, 3, 7, 20, 33, 47):
        life = place.live("upop", runs, full_at_sync=moment)
        assert "No space left on device" in one_sentence(life), moment
        assert not half_written(runs)
    assert place.live("upop", runs).code == 0
    assert final_files(runs) == final_files(calm)


def test_a_limit_on_the_size_of_files_costs_a_sentence(place: Place, runs: Path) -> None:
    """RLIMIT_FSIZE, which a quota answers with as well: the kernel itself cuts the writing short."""
    calm = place.undisturbed("magnitude+finetune")
    sizes = sorted({len(content) for content in final_files(calm).values()})
    for size in (600, sizes[-1] // 2):  # a lease, a sentence and little more; and less than the model's weights
        life = place.live("magnitude+finetune", runs, fsize=size)
        assert "File too large" in one_sentence(life)
        assert not half_written(runs)
    assert place.live("magnitude+finetune", runs).code == 0
    assert final_files(runs) == final_files(calm)


BEFORE_WORK = (
    "start",
    "digest of images",
)  # the second is read for the identity, where it takes long enough to be told


@pytest.fixture
def read_only() -> Iterator[Path]:
    """A folder that this user, or nobody where root runs the tests, can read and not write."""
    folder = Path(tempfile.mkdtemp(prefix="vlbench-read-only-"))
    folder.chmod(0o555)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


def test_a_folder_without_permission_is_told_before_any_work(place: Place, read_only: Path) -> None:
    if os.geteuid() == 0 and not _readable_by_all(place.folder):
        pytest.skip("root runs the tests, and the workspace cannot be read by another user")
    life = place.live("magnitude+finetune", read_only / "runs", nobody=os.geteuid() == 0)
    assert "cannot write in" in one_sentence(life)
    assert str(read_only / "runs") in one_sentence(life)
    assert life.stage in BEFORE_WORK
    assert not list(read_only.iterdir())


def test_a_read_only_disk_is_told_before_any_work(place: Place, runs: Path) -> None:
    life = place.live("magnitude+finetune", runs, refuse_step=1, errno=errno.EROFS)
    assert "Read-only file system" in one_sentence(life)
    assert life.stage in BEFORE_WORK
    assert not runs.exists()


def test_a_file_in_place_of_the_folder_is_told_before_any_work(place: Place, runs: Path) -> None:
    runs.write_text("a file")
    life = place.live("magnitude+finetune", runs)
    assert "cannot write in" in one_sentence(life)
    assert life.stage in BEFORE_WORK
    assert runs.read_text() == "a file"


def _readable_by_all(folder: Path) -> bool:
    return all(path.stat().st_mode & 0o005 == 0o005 for path in (folder, *folder.parents))
