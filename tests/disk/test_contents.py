"""Digests of files against hashlib over their bytes; what is read again, and what never, by counting reads."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from vlbench.disk import contents
from vlbench.disk.contents import ABSENT, Contents, digest_of
from vlbench.errors import UserError


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read. Files of tests are young: they count as settled."""
    monkeypatch.setattr(contents, "SETTLED", -1)
    names: list[str] = []
    plain = contents._read
    monkeypatch.setattr(contents, "_read", lambda path: (names.append(path.name), plain(path))[1])
    return names


def make(folder: Path, count: int = 3) -> list[Path]:
    folder.mkdir(exist_ok=True)
    files = [folder / f"{number}.png" for number in range(count)]
    for number, file in enumerate(files):
        file.write_bytes(f"picture {number}".encode())
    return files


def test_digests_are_sha256_of_the_bytes_and_files_are_read_once(tmp_path: Path, reads: list[str]) -> None:
    files = make(tmp_path / "a") + make(tmp_path / "b", 2)
    wanted = {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    assert Contents(tmp_path / "c" / "db").digests([*files, files[0]]) == wanted
    assert len(reads) == len(files)
    assert Contents(tmp_path / "c" / "db").digests(files) == wanted
    assert len(reads) == len(files), "a second process reads none of them"


def test_only_what_changed_is_read_again(tmp_path: Path, reads: list[str]) -> None:
    files = make(tmp_path / "a")
    known = Contents(tmp_path / "db")
    before = known.digests(files)
    reads.clear()
    date = files[1].stat().st_mtime_ns
    files[1].write_bytes(b"PICTURE 1")  # of the same size, and its date is put back
    os.utime(files[1], ns=(date, date))
    after = known.digests(files)
    assert reads == ["1.png"]
    assert after[files[1]] == hashlib.sha256(b"PICTURE 1").hexdigest() != before[files[1]]
    assert digest_of(files, after) != digest_of(files, before)


def test_what_has_just_changed_is_not_kept(tmp_path: Path) -> None:
    """It may change again within a tick of the clock."""
    files = make(tmp_path / "a", 1)
    Contents(tmp_path / "db").digests(files)
    assert Contents(tmp_path / "db")._kept({files[0]: contents._state(files[0])}) == {}


def test_a_file_that_is_written_while_it_is_read_is_not_kept(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = make(tmp_path / "a", 1)
    plain = contents._read

    def slow(path: Path) -> object:
        answer = plain(path)[0]
        path.write_bytes(b"longer than before")
        return answer, contents._state(path)

    monkeypatch.setattr(contents, "_read", slow)
    Contents(tmp_path / "db").digests(files)
    monkeypatch.setattr(contents, "_read", plain)
    assert Contents(tmp_path / "db").digests(files)[files[0]] == hashlib.sha256(b"longer than before").hexdigest()


@pytest.mark.parametrize("damage", ["garbage", "no folder", "another table"])
def test_a_database_that_cannot_be_used_is_done_without(tmp_path: Path, damage: str, reads: list[str]) -> None:
    import sqlite3

    files, database = make(tmp_path / "a"), tmp_path / "db"
    wanted = Contents(tmp_path / "good").digests(files)
    if damage == "garbage":
        database.write_bytes(b"no database at all" * 100)
    elif damage == "no folder":
        (tmp_path / "file").write_text("")
        database = tmp_path / "file" / "db"
    else:
        with sqlite3.connect(database) as connection:
            connection.execute("CREATE TABLE files (x INT)")
    assert Contents(database).digests(files) == wanted
    assert Contents(database).digests(files) == wanted


def test_absent_files_and_folders_have_no_digest_and_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    missing = folder / "missing.png"
    assert Contents(tmp_path / "db").digests([missing, folder]) == {missing: ABSENT, folder: ABSENT}
    os.mkfifo(folder / "pipe.png")
    with pytest.raises(UserError, match=r"pipe\.png is no regular file"):
        Contents(tmp_path / "db").digests([folder / "pipe.png"])
