"""Whole files, whole folders: at every moment a reader finds the old state or the new one."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlbench.disk import storage
from vlbench.errors import UserError


class Killed(BaseException):
    """Stands for SIGKILL: nothing may be cleaned up by `except Exception`."""


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fill(folder: Path, text: str) -> None:
    for name in ("a", "b"):
        (folder / name).write_text(text)


def filled(folder: Path, text: str) -> Path:
    folder.mkdir()
    fill(folder, text)
    return folder


def whole(folder: Path) -> str:
    """The text that all files of a whole folder hold."""
    texts = {name: (folder / name).read_text() for name in ("a", "b")}
    assert texts["a"] == texts["b"]
    return texts["a"]


def killing(monkeypatch: pytest.MonkeyPatch, moment: int) -> None:
    """Kill before the moment-th rename or removal of a file: from then on nothing changes any more."""
    steps: list[str] = []

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **more: Any) -> Any:
            steps.append(name)
            if len(steps) >= moment:
                raise Killed
            return real(*args, **more)

        return step

    for name in ("rename", "replace", "unlink", "rmdir"):
        monkeypatch.setattr(os, name, counted(name, getattr(os, name)))


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_text(tmp_path / "x.json", "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*x\.json: No space left on device"):
        storage.write_text(tmp_path / "x.json", "new")
    assert (tmp_path / "x.json").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_who_reads_meanwhile_has_the_old_file(tmp_path: Path) -> None:
    storage.write_text(tmp_path / "x.json", "old")
    with (tmp_path / "x.json").open() as reader:
        storage.write_text(tmp_path / "x.json", "new")
        assert reader.read() == "old"
    assert (tmp_path / "x.json").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_file_in_the_folders_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*runs"):
        storage.write_text(tmp_path / "runs" / "x.json", "new")


def test_a_file_system_that_syncs_no_folders_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{handle}"):  # noqa: PTH112 - a file handle, not a path
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    storage.write_text(tmp_path / "x", "new")
    assert (tmp_path / "x").read_text() == "new"


@pytest.mark.parametrize("text", ["", "{", '{"a": 1}}', "\x00\xff", "[" * 100_000])
def test_damaged_json_is_told_with_its_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"x\.json is damaged"):
        storage.read_json(tmp_path / "x.json")


def test_a_sealed_file_shows_every_flipped_bit(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    value = {"loss": [0.1, 2e-07], "pairs": [(1, 2)], "by size": {10: "a", 2: "b"}, "none": None}
    storage.write_sealed(file, value)
    assert storage.read_sealed(file) == {**value, "pairs": [[1, 2]], "by size": {"10": "a", "2": "b"}}
    data = file.read_bytes()
    for place in range(len(data)):
        if chr(data[place]).isspace():
            continue
        file.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(UserError, match=r"x\.json is damaged"):
            storage.read_sealed(file)


@pytest.mark.parametrize("text", ["[]", "3", '{"a": 1}'])
def test_json_without_a_seal_is_damaged(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match="digest differs"):
        storage.read_sealed(tmp_path / "x.json")


@pytest.mark.parametrize("left", ["", ".state.tmp", ".state.old"], ids=["clean", "half-made", "not yet removed"])
def test_killed_at_every_step_a_folder_is_the_old_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    """`left`: what an earlier kill left beside it."""
    ends, moment, killed = set(), 0, True
    while killed:
        moment += 1
        place = tmp_path / str(moment)
        place.mkdir()
        final = filled(place / "state", "old")
        if left:
            (filled(place / left, "older") / "a").unlink()
        killed = refill(final, monkeypatch, moment)
        ends.add(whole(storage.standing(final)))
        with storage.new_folder(final) as temporary:
            fill(temporary, "newest")
        assert whole(final) == "newest"
        assert [p.name for p in place.iterdir()] == ["state"]
    assert ends == {"old", "new"}
    assert moment > 5


def refill(final: Path, monkeypatch: pytest.MonkeyPatch, moment: int) -> bool:
    """Whether it was killed."""
    with monkeypatch.context() as patch:
        killing(patch, moment)
        try:
            with storage.new_folder(final) as temporary:
                fill(temporary, "new")
        except Killed:
            return True
    return False


def test_a_kill_between_the_two_renames_keeps_the_old_folder(tmp_path: Path) -> None:
    filled(tmp_path / ".state.old", "old")  # as it lies then
    assert whole(storage.standing(tmp_path / "state")) == "old"
    storage.replace_folder(filled(tmp_path / ".state.tmp", "new"), tmp_path / "state")
    assert whole(storage.standing(tmp_path / "state")) == "new"
    assert not (tmp_path / ".state.old").exists()


def test_killed_while_removed_a_folder_is_whole_or_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for moment in range(1, 12):
        shutil.rmtree(tmp_path / "x", ignore_errors=True)
        (tmp_path / "x").mkdir()
        final = filled(tmp_path / "x" / "state", "new")
        filled(tmp_path / "x" / ".state.old", "old")  # left by a kill: it must not stand again
        with monkeypatch.context() as patch, contextlib.suppress(Killed):
            killing(patch, moment)
            storage.remove_folder(final)
        found = storage.standing(final)
        assert not found.exists() or whole(found) == "new"
    storage.remove_folder(final)
    assert not storage.standing(final).exists()


def test_a_full_disk_leaves_the_old_folder_and_gives_the_room_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path / "state", "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*state: No space left"), storage.new_folder(tmp_path / "state"):
        pass
    assert whole(tmp_path / "state") == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


def test_a_mistake_while_filling_leaves_the_old_folder(tmp_path: Path) -> None:
    filled(tmp_path / "state", "old")
    with pytest.raises(KeyError), storage.new_folder(tmp_path / "state"):
        raise KeyError
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


def test_a_sweep_takes_what_kills_left_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".result.json.17.tmp").write_text("")
    filled(tmp_path / ".model.tmp", "half")
    filled(tmp_path / "model", "whole")
    (tmp_path / "result.json").write_text("")
    storage.sweep(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "result.json"]


def test_canonical_says_no_infinity() -> None:
    with pytest.raises(ValueError):
        storage.canonical({"loss": float("nan")})
