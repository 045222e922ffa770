"""A mini world on disk: whole or not there, whatever races and whatever lay in the cache before."""

import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from vlbench.errors import RunFailed
from vlbench.mini.world import FILES, MARKER, World, mini_root
from vlbench.mini.writer import WORLD_VERSION, Writer

# What a writer says of one file of that name and text, by hand: sha256(b"payload\nwhole").
DIGEST = "c9095199a7bf726eed09dfe370a1bb2ec3a4f3f5e693769b976d80741bc6705f"


class Toy:
    """A world of one file that counts its builds."""

    def __init__(self) -> None:
        self.built: list[Path] = []
        self.world = World("toy", 0, self.write, DIGEST)

    def write(self, writer: Writer) -> None:
        self.built.append(writer.root)
        writer.folder("")
        writer.text("payload", "whole")


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Toy:
    """In a cache of its own."""
    monkeypatch.setenv("VLBENCH_CACHE", str(tmp_path))
    return Toy()


def test_second_use_reads_the_cache(toy: Toy, tmp_path: Path) -> None:
    root = mini_root(toy.world)
    assert root == mini_root(toy.world) == tmp_path / f"mini-v{WORLD_VERSION}" / "toy"
    assert len(toy.built) == 1
    assert [entry.name for entry in root.parent.iterdir()] == ["toy"]


@pytest.mark.parametrize("damage", ["missing", "other digest", "empty"])
def test_folder_without_its_marker_is_rebuilt(damage: str, toy: Toy) -> None:
    marker = mini_root(toy.world) / MARKER
    (marker.parent / "stray").write_text("left by something else")
    if damage == "missing":
        marker.unlink()
    else:
        marker.write_text("" if damage == "empty" else "0" * 64)
    root = mini_root(toy.world)
    assert len(toy.built) == 2
    assert sorted(entry.name for entry in root.iterdir()) == [MARKER, FILES, "payload"]
    assert [entry.name for entry in root.parent.iterdir()] == ["toy"]


@pytest.mark.parametrize("damaged", [False, True])
def test_racing_builds_leave_one_folder(damaged: bool, toy: Toy) -> None:
    if damaged:
        (mini_root(toy.world) / MARKER).unlink()
        toy.built.clear()
    meeting = threading.Barrier(4)

    def write_together(writer: Writer) -> None:
        toy.write(writer)
        meeting.wait(timeout=10)  # all four have built before any publishes

    world = replace(toy.world, write=write_together)
    roots: list[Path] = []
    threads = [threading.Thread(target=lambda: roots.append(mini_root(world))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(roots) == len(toy.built) == 4
    assert len(set(roots)) == 1
    assert (roots[0] / "payload").read_text() == "whole"
    assert [entry.name for entry in roots[0].parent.iterdir()] == ["toy"]


def test_changed_generator_is_refused_by_name_and_leaves_nothing(toy: Toy) -> None:
    def write_more(writer: Writer) -> None:
        toy.write(writer)
        writer.text("more", "")

    with pytest.raises(RunFailed, match=rf"'toy' came out with digest [0-9a-f]{{64}}, expected {DIGEST}"):
        mini_root(replace(toy.world, write=write_more))
    assert list((toy.built[0].parent).iterdir()) == []


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, toy: Toy) -> None:
    here = Path(os.environ["VLBENCH_CACHE"])
    monkeypatch.delenv("VLBENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "xdg"))
    assert mini_root(toy.world).parent.parent == here / "xdg" / "vlbench"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(here / "home"))
    assert mini_root(toy.world).parent.parent == here / "home" / ".cache" / "vlbench"
