"""Oracle: what is no file of ours (links, pipes, other programs' .tmp) is as it was afterwards, and nobody waits."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
from PIL import Image

from tests.lab import Lab
from vlbench.disk.storage import new_folder, read_json, refuse_link, sweep, write_text
from vlbench.errors import UserError
from vlbench.images.files import Undecodable
from vlbench.images.pipeline import decode
from vlbench.records.record import read_record
from vlbench.sweep.state import brief
from vlbench.tensors.locate import locate


def listing(folder: Path) -> list[tuple[str, bool]]:
    return sorted((str(path.relative_to(folder)), path.is_symlink()) for path in folder.rglob("*"))


def test_a_sweep_of_left_over_files_takes_our_names_alone(tmp_path: Path) -> None:
    theirs, cell = tmp_path / "theirs", tmp_path / "cell"
    for folder in (theirs, cell / ".model.tmp", cell / ".editor.tmp"):
        folder.mkdir(parents=True)
        (folder / "kept").write_text("x")
    (cell / ".result.json.123.tmp").write_text("cut")
    (cell / ".notes.tmp").write_text("mine")
    (cell / ".statistics.tmp").symlink_to(theirs)
    sweep(cell)
    assert sorted(path.name for path in cell.iterdir()) == [".editor.tmp", ".notes.tmp", ".statistics.tmp"]
    assert (theirs / "kept").read_text() == "x"


def test_an_export_removes_no_folder_that_has_a_temporary_name(tmp_path: Path) -> None:
    (tmp_path / ".out.tmp").mkdir()
    (tmp_path / ".out.tmp" / "kept").write_text("x")
    with new_folder(tmp_path / "out", among_others=True) as folder:
        (folder / "new").write_text("y")
    assert (tmp_path / ".out.tmp" / "kept").read_text() == "x"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.tmp", "out"]


def test_a_link_in_a_temporary_files_place_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("x")
    (tmp_path / f".a.{os.getpid()}.tmp").symlink_to(tmp_path / "theirs")
    with pytest.raises(UserError, match="cannot write"):
        write_text(tmp_path / "a", "y")
    assert (tmp_path / "theirs").read_text() == "x"


def test_a_cells_folder_that_is_a_link_is_refused_and_left(lab: Lab) -> None:
    cell = json.loads(lab.run("--json").out)["cell"]
    runs, theirs = lab.folder / "runs", lab.folder / "elsewhere"
    (runs / cell).rename(theirs)
    (runs / cell).symlink_to(theirs)
    before = listing(theirs)
    assert f"{cell} is a link to" in lab.refused_run()
    assert listing(theirs) == before
    assert (runs / cell).is_symlink()
    with pytest.raises(UserError):
        refuse_link(runs / cell)


@pytest.fixture
def special(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A pipe and a socket. (A socket's name is short: its folder is the current one.)"""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.png")
    socket.socket(socket.AF_UNIX).bind("socket.png")
    return [tmp_path / "pipe.png", tmp_path / "socket.png", Path("/dev/zero")]


def test_what_is_no_file_is_no_image_no_weights_and_no_result(special: list[Path], tmp_path: Path) -> None:
    for path in special:
        with pytest.raises(Undecodable, match="a pipe, a socket or a device"):
            decode(path)
        with pytest.raises(UserError, match="a pipe, a socket or a device"):
            locate(str(path), "main", {})
        with pytest.raises(UserError, match="is no file"):
            read_json(path)
    folder = tmp_path / "weights"
    folder.mkdir()
    os.mkfifo(folder / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors is no file"):
        locate(str(folder), "main", {})
    (tmp_path / "cell").mkdir()
    os.mkfifo(tmp_path / "cell" / "result.json")
    with pytest.raises(UserError, match="is no file"):
        brief(tmp_path / "cell")


def test_an_image_that_is_a_pipe_ends_a_command(lab: Lab) -> None:
    """As a sample's error or refused by name, and not waited for."""
    picture = next((lab.data / "val").rglob("*.png"))
    Image.open(picture).close()
    picture.unlink()
    os.mkfifo(picture)
    told = lab.run()
    assert told.code in (1, 2)
    assert "Traceback" not in told.err
    assert picture.name in told.err or "errors" in told.err


@pytest.mark.parametrize("name", ["../../outside", "a/b", "", ".hidden", "x" * 300])
def test_a_result_whose_cell_is_a_path_is_damaged(lab: Lab, name: str) -> None:
    cell = json.loads(lab.run("--json").out)["cell"]
    file = lab.folder / "runs" / cell / "result.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "cell": name}))
    with pytest.raises(UserError, match=r"is damaged \(cell"):
        read_record(file)
