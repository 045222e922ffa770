"""`vlbench doctor` by facts that the test makes: an extra that is missing, a root that lacks files, no Java."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest

from vlbench.checks import doctor
from vlbench.machine.device import VARIABLE


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace whose only root is an ImageNet without val/."""
    (tmp_path / "data" / "imagenet" / "train").mkdir(parents=True)
    (tmp_path / "vlbench.toml").write_text(f'[roots]\nimagenet = "{tmp_path}/data/imagenet"\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VLBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_each_task_says_what_it_lacks(place: Path) -> None:
    report = doctor.doctor(place / "runs")
    assert report.tasks["vqav2"] == ["no root coco: name its folder in vlbench.toml or by VLBENCH_DATA"]
    assert any("val" in line for line in report.tasks["imagenet"])
    assert report.places["root imagenet"] == str(place / "data" / "imagenet")
    assert report.places["cache"].endswith("(not there)")
    assert not (place / "runs").exists(), "it writes nothing"


def test_an_extra_that_is_missing_names_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ['numpy>=2; extra == "first"', 'no-such-package>=1; extra == "second"', "torch>=2", 'x; extra == "dev"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: lines)
    assert doctor._extras() == {
        "first": "installed",
        "second": "lacks no-such-package: pip install 'vlbench[second]'",
    }


def test_java_and_a_device_that_are_not_there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(place))
    monkeypatch.setenv(VARIABLE, "xpu:7")
    facts = doctor._machine(place / "runs")
    assert facts["java"].startswith("none: METEOR and SPICE")
    assert "xpu" in facts["device"]


def test_as_json_and_for_people(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    doctor.print_report(place / "runs", json=True)
    told = json.loads(capsys.readouterr().out)
    assert set(told) == {"machine", "packages", "extras", "places", "tasks"}
    doctor.print_report(place / "runs", json=False)
    text = capsys.readouterr().out
    assert "coco_caption, coco_retrieval, okvqa, vqav2: no root coco" in text
