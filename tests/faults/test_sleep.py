"""A machine that slept through the life of its lease, and finds that another has its cell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.faults.lives import Place, final_files
from tests.waiting import until
from vlbench.disk import lease
from vlbench.machine.ui import Screen
from vlbench.run.runner import Runner

pytestmark = pytest.mark.faults


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("moment", [("upop_search", 3), ("finetune", 4), ("evaluate upop", 8)])
def test_who_lost_its_cell_while_it_slept_stops_and_takes_the_others_result(
    place: Place, runs: Path, moment: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine's lease, which is dead as soon as the sleeper has noticed: it goes on from what is on disk."""
    monkeypatch.chdir(place.folder)
    monkeypatch.setattr(lease, "HEARTBEAT", 0.01)
    said: list[str] = []

    class Sleepy(Screen):
        def say(self, text: str) -> None:
            said.append(text)

        def progress(self, what: str, done: int, total: int, text: str = "") -> None:
            if (what, done) == moment and not said:
                (mine,) = runs.glob("*-upop-*/lease.json")
                mine.write_text(json.dumps({**json.loads(mine.read_text()), "started": "another", "token": "another"}))
                until(runner._lost.is_set)

    runner = Runner(runs, Sleepy(), checkpoint_seconds=0.0)
    runner.run(dict(word.split("=", 1) for word in place.words("upop", runs) if "=" in word))
    assert said == ["another vlbench took this cell over while this machine gave no sign of life"]
    assert final_files(runs) == final_files(place.undisturbed("upop"))
