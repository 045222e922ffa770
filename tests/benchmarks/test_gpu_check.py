"""`make gpu-check` on tiny models and the CPU, so that it runs on the day somebody has a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.benchmarks import evaluation, gpu_check, gpu_rows
from tests.benchmarks.common import Bench

Capture = pytest.CaptureFixture[str]


@pytest.mark.slow
def test_every_check_runs(capsys: Capture) -> None:
    assert gpu_check.main(["--cpu", "--tiny"]) == 0
    out = capsys.readouterr().out
    for told in (
        "device",
        "torch.compile DeiT-S",
        "timm",
        "out of memory vqav2",
        "bf16 clip-mini",
        "2:4 linear",
        "Wanda LLaVA 2:4",
        "fp32 without TF32",
    ):
        assert told in out
    for task in evaluation.SLICES:
        assert f"published loop {task}" in out
    for task in gpu_check.SPLITS:
        assert f"minutes {task} bf16" in out


def test_a_check_that_fails_says_why_and_the_table_goes_on(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(bench: Bench) -> Iterator[gpu_rows.Row]:
        yield gpu_rows.Row("before", "1")
        raise ValueError("the card\nis on fire, " + "and so on " * 20)

    monkeypatch.setitem(gpu_check.CHECKS, "broken", broken)
    assert gpu_check.main(["--cpu", "--tiny", "--only", "broken,sparse"]) == 1
    heads, before, error, after, last = capsys.readouterr().out.splitlines()
    assert heads.split() == ["check", "measured", "wanted", "ok"]
    assert before.split() == ["before", "1", "-", "-"]
    assert error.startswith("broken ")
    assert "ValueError: the card is on fire, and so on" in error
    assert error.index("no error") == heads.index("wanted")
    assert error.endswith("NO")
    assert after.startswith("2:4 linear")
    assert last.startswith("3 rows, 1 failed")


def test_a_packed_matrix_is_compared_with_the_masked_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which a CPU cannot pack: here it stays as it is, or loses its last row."""
    monkeypatch.setattr(gpu_check, "TOKENS", (2, 8))
    bench = Bench(torch.device("cpu"), tmp_path, tiny=True)
    for pack, ok in ((lambda w: w, True), (lambda w: w.cumsum(0).diff(dim=0, append=w[-1:]), False)):
        monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", pack)
        assert gpu_check._sparse(bench, "16 to 32", (32, 16)).ok is ok


def test_checks_end_within_their_time(tmp_path: Path) -> None:
    bench = Bench(torch.device("cpu"), tmp_path, tiny=True)
    (row,) = gpu_check.rows(bench, ["minutes"], budget=-1.0)
    assert row.ok is False
    assert row.measured.startswith("not begun")


@pytest.mark.parametrize("words", [[], ["--tiny"], ["--only", "oom"]])
def test_without_a_gpu_it_says_so(words: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main(words) == 2
    out, err = capsys.readouterr()
    assert not out
    assert len(err.splitlines()) == 1
    assert "sees no GPU" in err


@pytest.mark.parametrize("words", [["--cpu"], ["--only", "everything"]])
def test_words_that_mean_nothing(words: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stopped:
        gpu_check.main(words)
    assert stopped.value.code == 2
    assert capsys.readouterr().err
