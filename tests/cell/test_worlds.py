"""A mini world against its generator: a world of two pictures, edited in every way that its own list would hide."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlbench.cell import worlds
from vlbench.cell.worlds import compared, refuse_other_world
from vlbench.errors import RunFailed, UserError
from vlbench.mini.world import World, list_files, mini_root
from vlbench.mini.writer import Writer


def write(writer: Writer) -> None:
    random = np.random.default_rng(3)
    writer.folder("val")
    for name in ("a.png", "b.JPEG"):
        writer.image(f"val/{name}", random.integers(0, 256, (24, 24, 3), dtype=np.uint8))
    writer.text("names.txt", "a b")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("VLBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(worlds, "_SOUND", set())
    with pytest.raises(RunFailed) as message:
        World("tiny", 2, write, "").build(tmp_path / "unpinned")
    return World("tiny", 2, write, str(message.value).split("digest ")[1].split(",")[0])


def test_a_world_as_it_is_made_is_sound_and_compared_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    root = mini_root(world)
    refuse_other_world(world, root)
    monkeypatch.setattr(worlds, "compared", None)
    refuse_other_world(world, root)


@pytest.mark.parametrize("damage", ["val/a.png", "val/b.JPEG", "names.txt", "stray", "missing"])
def test_an_edit_is_named_whatever_the_list_says(world: World, damage: str) -> None:
    root = mini_root(world)
    refuse_other_world(world, root)
    file = root / damage
    if damage == "stray":
        file.write_text("more")
    elif damage == "missing":
        file = root / "val" / "a.png"
        file.unlink()
    elif damage == "names.txt":
        file.write_text("b a")
    else:
        Image.open(file).rotate(90).save(file)
    list_files(root)
    with pytest.raises(UserError, match=rf"mini world in .*tiny is not what .*{file.name}.*built anew"):
        refuse_other_world(world, root)


def test_a_jpeg_of_another_encoder_is_the_same_picture(world: World) -> None:
    root = mini_root(world)
    file = root / "val" / "b.JPEG"
    before = file.read_bytes()
    Image.open(file).save(file, format="JPEG", quality=100, subsampling="4:4:4")
    assert file.read_bytes() != before
    assert compared(world, root).differing == ()
