"""Result files: every schema is read or refused in a sentence, and packing gives back what it was given."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.leaderboard.factory import record
from vlbench.errors import UserError
from vlbench.plugins.workspace import boards_folder
from vlbench.records import record as records
from vlbench.records.record import (
    SCHEMA_VERSION,
    cluster_numbers,
    pack_clusters,
    pack_scores,
    read_record,
    unpack_clusters,
    unpack_scores,
    write_record,
)


def write(path, **changes):
    data = {**record("wanda", sparsity=0.5).model_dump(mode="json"), **changes}
    path.write_text(json.dumps({k: v for k, v in data.items() if v is not None or k in ("macs", "vs_dense", "seed")}))
    return path


def test_a_record_of_schema_1_is_read_and_keeps_its_identity(tmp_path):
    old = write(tmp_path / "old.json", schema_version=1, sample_clusters=None, model_digest=None)
    assert "sample_clusters" not in json.loads(old.read_text())
    found = read_record(old)
    new = record("wanda", sparsity=0.5)
    assert (found.schema_version, found.sample_clusters, found.model_digest) == (SCHEMA_VERSION, "", "")
    assert found.model_copy(update={"sample_clusters": new.sample_clusters}) == new
    assert (found.identity, found.cell) == (new.identity, new.cell)


def test_every_committed_result_is_read_with_its_identity_untouched():
    files = sorted(boards_folder().glob("results/*/*.json"))
    assert files
    for file in files:
        told, found = json.loads(file.read_text()), read_record(file)
        assert (found.identity, found.cell, found.metrics) == (told["identity"], told["cell"], told["metrics"])


def test_migrations_follow_one_another(tmp_path, monkeypatch):
    """As if versions -1 and 0 had been: each step makes the next version's data."""
    steps = {
        -1: lambda d: {**{k: v for k, v in d.items() if k != "w"}, "weights": d["w"]},
        0: lambda d: {**{k: v for k, v in d.items() if k != "weights"}, "weights_digest": d["weights"]},
        **records.MIGRATIONS,
    }
    monkeypatch.setattr(records, "MIGRATIONS", steps)
    path = write(tmp_path / "ancient.json", schema_version=-1, weights_digest=None)
    path.write_text(json.dumps({**json.loads(path.read_text()), "w": "abc"}))
    assert read_record(path).weights_digest == "abc"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"schema_version": SCHEMA_VERSION + 1}, "reads up to 2: update vlbench"),
        ({"schema_version": 0}, "is no vlbench result"),
        ({"schema_version": "2"}, "is no vlbench result"),
        ({"schema_version": True}, "is no vlbench result"),
        ({"schema_version": None}, "is no vlbench result"),
        ({"metrics": {"accuracy": "high"}}, r"is damaged \(metrics.accuracy"),
        ({"unknown": 1}, r"is damaged \(unknown"),
        ({"metrics": {"accuracy": float("nan")}}, r"is damaged \(Out of range float"),
        ({"provenance": {"seconds": float("inf")}}, r"is damaged \(Out of range float"),
        ({"model": "half a \ud800 character"}, r"is damaged .*surrogates"),
        ({"parameters": {**record().parameters.model_dump(), "dense": 0}}, r"is damaged \(parameters.dense"),
    ],
)
def test_what_is_no_record_is_refused_with_its_name(tmp_path, changes, why):
    with pytest.raises(UserError, match=f"bad.json .*{why}"):
        read_record(write(tmp_path / "bad.json", **changes))


@pytest.mark.parametrize("text", ["", "[]", "null", '{"a": 1}', '{"schema_version": 2', "\x00\x01", "[" * 5000])
def test_foreign_files_are_refused(tmp_path, text):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(UserError, match=r"bad\.json"):
        read_record(tmp_path / "bad.json")


@given(st.lists(st.sampled_from(["", "a", "b", "10", "9"]), min_size=1, max_size=40))
def test_packed_clusters_number_the_same(labels):
    text = pack_clusters(labels)
    if not text:
        assert len(set(filter(None, labels))) + labels.count("") == len(labels)
    else:
        assert np.array_equal(cluster_numbers(unpack_clusters(text)), cluster_numbers(labels))


def test_clusters_that_follow_one_another_take_little():
    labels = [str(1000 + i // 5) for i in range(20_000)]
    assert len(pack_clusters(labels)) < 300
    with pytest.raises(UserError, match="clusters are damaged"):
        unpack_clusters("nonsense")


@given(st.lists(st.lists(st.integers(-(2**31), 2**31), min_size=3, max_size=3), min_size=1, max_size=9))
def test_packed_scores_come_back(table):
    assert np.array_equal(unpack_scores(pack_scores(table)), table)


def test_a_record_is_written_as_it_is_read(tmp_path):
    write_record(tmp_path / "a.json", record())
    assert read_record(tmp_path / "a.json") == record()
