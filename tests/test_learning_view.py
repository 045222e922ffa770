"""A method is given train and select: every way to another split through its job is tried."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab import Lab, workspace

METHOD = '''"""A stranger's method that looks at what it must not see."""

from vlbench.method import Method, method
from vlbench.options import MethodOptions


@method("peek", title="Peek", role="pruner", patterns=("structured",), uses_seed=True)
class Peek(Method):
    """Reads."""

    Options = MethodOptions

    def apply(self, job):
        assert len(job.task.samples(job.task.split_for("train"))) > 0
        {way}
'''
WAYS = (
    'job.task.samples(job.task.roles()["report"])',
    "job.trial('one').task.samples('val')",
    "[job.task.samples(s) for s in job.task.report_splits()]",
)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    with workspace(tmp_path, monkeypatch, capsys) as made:
        yield made


@pytest.mark.parametrize("way", WAYS)
def test_the_report_split_is_not_to_be_had_through_the_job(lab: Lab, way: str) -> None:
    lab.plug("methods/peek.py", METHOD.replace("{way}", way))
    told = lab.run("method=peek", "--json")
    assert told.code == 2, told
    assert "a method asked for the split val of imagenet: it may learn from train" in told.err
    lab.plug("methods/peek.py", METHOD.replace("{way}", "pass"))
    assert lab.run("method=peek", "--json").code == 0, "evaluation reads it after the method"
