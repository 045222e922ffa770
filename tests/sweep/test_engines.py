"""Which engine is asked for, and what contradicts itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlbench.errors import UserError
from vlbench.sweep.engines import Engine
from vlbench.sweep.local import LocalExecutor


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"name": "rai"}, "--engine rai is not known. Did you mean 'ray'?"),
        (
            {"name": "local", "address": "auto"},
            "--address belongs to --engine ray, and this sweep runs on",
        ),
        ({"name": "slurm", "gpus_per_cell": 0.0}, "--gpus-per-cell belongs to --engine ray"),
        ({"name": "ray", "slurm": ("time=5",)}, "--slurm belongs to --engine slurm"),
        ({"name": "slurm", "slurm": ("time",)}, "'time' should be key=value"),
        ({"name": "slurm", "slurm": ("time=5", "time=6")}, "time= is given twice"),
    ],
)
def test_contradictions_are_told(options: dict[str, object], why: str) -> None:
    with pytest.raises(UserError) as told:
        Engine(**options)  # type: ignore[arg-type]
    assert why in str(told.value)
    assert len(str(told.value).splitlines()) == 1


def test_this_machine_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    for jobs, wanted in ((None, 2), (4, 4)):
        executor = Engine(jobs=jobs).start(tmp_path / "runs", lambda: None)
        assert isinstance(executor, LocalExecutor)
        assert (executor.jobs, executor.devices) == (wanted, ["3", "5"])
        executor.close()


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(UserError, match="Choose another folder with --runs"):
        Engine().start(tmp_path / "runs", lambda: None)
