"""Oracle: the same store without a disk, to the byte; what is kept is damaged, replaced, and bounded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vlbench.errors import UserError
from vlbench.images import kept, pipeline
from vlbench.images.files import Undecodable
from vlbench.images.kept import KeptPixels
from vlbench.images.pipeline import ImageStore
from vlbench.images.spec import ImageSpec

SPECS = [
    ImageSpec(160), ImageSpec(160, resize="crop", crop_pct=0.875, interpolation="bilinear"),
    ImageSpec(160, resize="pad"),
]  # fmt: skip
ONE = 3 * 160 * 160 + kept.HEAD.size


def picture(path: Path, seed: int) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (180, 220, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, quality=90)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    return [picture(tmp_path / f"{i}.jpg", i) for i in range(4)]


def pixels(root: Path, spec: ImageSpec = SPECS[0], budget: float = 1e9) -> ImageStore:
    return ImageStore(spec, workers=2, keep_bytes=0, kept=KeptPixels(root, spec, budget))


def files(root: Path) -> list[Path]:
    return sorted(root.glob("*/*/*"))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are decoded from here on."""
    found: list[Path] = []
    plain = pipeline.decode

    def noted(path: Path, content: bytes | None = None) -> torch.Tensor:
        found.append(path)
        return plain(path, content)

    monkeypatch.setattr(pipeline, "decode", noted)
    return found


@pytest.mark.parametrize("spec", SPECS)
def test_what_is_read_is_what_was_decoded(
    spec: ImageSpec, photos: list[Path], tmp_path: Path, decoded: list[Path]
) -> None:
    plain = ImageStore(spec)
    wanted = plain.load(photos)
    pixels(tmp_path / "kept", spec).load(photos)
    decoded.clear()
    again = pixels(tmp_path / "kept", spec)
    assert all(map(torch.equal, again.load(photos), wanted))
    assert again.sizes == plain.sizes
    assert not decoded


def test_a_kept_image_may_be_changed_in_memory_and_stays(photos: list[Path], tmp_path: Path) -> None:
    pixels(tmp_path / "kept").load(photos)
    first = pixels(tmp_path / "kept").load(photos)
    wanted = [one.clone() for one in first]
    for one in first:
        one.zero_()
    assert all(map(torch.equal, pixels(tmp_path / "kept").load(photos), wanted))


@pytest.mark.parametrize("harm", ["a bit", "the size", "cut", "empty", "another's"])
def test_damage_is_noticed_and_mended(harm: str, photos: list[Path], tmp_path: Path, decoded: list[Path]) -> None:
    wanted = pixels(tmp_path / "kept").load(photos)
    one, other = files(tmp_path / "kept")[:2]
    content = bytearray(one.read_bytes())
    if harm == "another's":
        content = bytearray(other.read_bytes())
    elif harm in ("a bit", "the size"):
        content[1000 if harm == "a bit" else 5] ^= 1
    else:
        del content[0 if harm == "empty" else 500 :]
    one.write_bytes(content)
    decoded.clear()
    assert all(map(torch.equal, pixels(tmp_path / "kept").load(photos), wanted))
    assert len(decoded) == 1
    pixels(tmp_path / "kept").load(photos)
    assert len(decoded) == 1


def test_a_replaced_photo_is_another_photo(photos: list[Path], tmp_path: Path) -> None:
    before = pixels(tmp_path / "kept").load(photos[:1])[0]
    state = photos[0].stat()
    picture(photos[0], 9)
    os.utime(photos[0], ns=(state.st_atime_ns, state.st_mtime_ns))
    after = pixels(tmp_path / "kept").load(photos[:1])[0]
    assert not torch.equal(before, after)
    assert torch.equal(after, ImageStore(SPECS[0]).load(photos[:1])[0])


def test_what_does_not_decode_is_told_as_ever_and_not_kept(tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no image")
    for path in (bad, tmp_path / "absent.jpg", tmp_path):
        told = []
        for store in (ImageStore(SPECS[0]), pixels(tmp_path / "kept")):
            with pytest.raises(Undecodable) as error:
                store.load([path])
            told.append(str(error.value))
        assert told[0] == told[1]
    assert not files(tmp_path / "kept")


def test_the_budget_is_for_all_preprocessings_together(photos: list[Path], tmp_path: Path) -> None:
    root = tmp_path / "kept"
    for spec in SPECS:
        pixels(root, spec, 5 * ONE).load(photos)
    assert len(files(root)) == 5


def test_what_nobody_used_for_long_makes_room(photos: list[Path], tmp_path: Path) -> None:
    root = tmp_path / "kept"
    pixels(root, SPECS[0], 4 * ONE).load(photos)
    old = KeptPixels(root, SPECS[0], 1).folder
    os.utime(old, (1, 1))
    pixels(root, SPECS[1], 4 * ONE).load(photos)
    assert not old.exists()
    assert len(files(root)) == 4


def test_a_killed_run_takes_no_room(photos: list[Path], tmp_path: Path) -> None:
    """It counted what it never wrote, and left a file half-written."""
    root = tmp_path / "kept"
    pixels(root, SPECS[0], 4 * ONE).load(photos[:1])
    (root / "bytes").write_text(str(4 * ONE))
    half = files(root)[0].with_name("half" + kept.UNFINISHED)
    half.write_bytes(b"half")
    pixels(root, SPECS[0], 4 * ONE).load(photos)
    assert len(files(root)) == 4
    assert not half.exists()


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(photos: list[Path], tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("a file")
    assert all(map(torch.equal, pixels(tmp_path / "kept").load(photos), ImageStore(SPECS[0]).load(photos)))


def test_processes_share_it_and_its_budget(photos: list[Path], tmp_path: Path) -> None:
    root = tmp_path / "kept"
    program = (
        "import sys; from pathlib import Path; from tests.images.test_kept import *\n"
        "pixels(Path(sys.argv[1]), budget=3 * ONE).load([Path(p) for p in sys.argv[2:]])"
    )
    words = [sys.executable, "-c", program, str(root), *map(str, photos)]
    running = [subprocess.Popen(words) for _ in range(2)]
    assert [one.wait(120) for one in running] == [0, 0]
    assert len(files(root)) == 3
    assert not list(root.glob("*/*/*.tmp"))
    assert all(map(torch.equal, pixels(root).load(photos), ImageStore(SPECS[0]).load(photos)))


def test_another_preprocessing_code_or_processor_is_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def folder(spec: ImageSpec) -> Path:
        return KeptPixels(tmp_path, spec, 1).folder

    grey = (0.5, 0.5, 0.5)
    assert len({folder(spec) for spec in SPECS}) == 3
    assert folder(ImageSpec(160, mean=grey, std=grey)) == folder(SPECS[0])
    assert folder(ImageSpec(160, resize="pad", mean=grey)) != folder(SPECS[2])
    before = folder(SPECS[0])
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another")
    assert folder(SPECS[0]) != before
    monkeypatch.undo()
    monkeypatch.setattr(kept, "version", lambda name: "0")
    assert folder(SPECS[0]) != before


@pytest.mark.parametrize("spec", [ImageSpec(160, resize="keep"), ImageSpec(160, resize="views"), ImageSpec(64)])
def test_some_images_are_not_kept(spec: ImageSpec) -> None:
    assert KeptPixels.here(spec) is None
    assert KeptPixels.here(SPECS[0]) is not None


def test_the_budget_is_a_word_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kept.VARIABLE, "0.5")
    assert kept.budget_bytes() == 2**29
    monkeypatch.setenv(kept.VARIABLE, "0")
    assert KeptPixels.here(SPECS[0]) is None
    for word in ("much", "-1", "nan", "inf"):
        monkeypatch.setenv(kept.VARIABLE, word)
        with pytest.raises(UserError, match="VLBENCH_PIXELS_GB"):
            kept.budget_bytes()
