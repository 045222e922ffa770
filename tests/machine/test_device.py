"""Oracle: torch.accelerator's own answers, replaced by a machine with two GPUs where there is none."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.lab import Lab
from vlbench.errors import UserError
from vlbench.machine import device


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A machine with two GPUs of a kind without bfloat16; what was made the current one."""
    current: list[int] = []
    module = SimpleNamespace(
        is_bf16_supported=lambda including_emulation: including_emulation,
        get_device_name=lambda one: f"Old GPU {one.index}",
    )
    monkeypatch.setenv(device.VARIABLE, "")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "set_device_index", current.append)
    monkeypatch.setattr(torch, "get_device_module", lambda d: module)
    return current


def test_the_accelerator_is_the_default_and_the_cpu_where_there_is_none(
    two: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert device.computing_device() == torch.device("cuda")
    assert device.count() == 2
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert device.computing_device() == torch.device("cpu")
    assert device.count() == 0


def test_apples_is_taken_by_name_only(two: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("mps"))
    assert device.computing_device() == torch.device("cpu")
    assert device.device_named("mps") == torch.device("mps")


def test_one_of_several_becomes_the_current_one(two: list[int]) -> None:
    device.ask_for("cuda:1")
    assert device.computing_device() == torch.device("cuda", 1)
    assert two == [1]
    assert device.count() == 1
    device.ask_for("")  # no word: nothing changes
    assert device.computing_device() == torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("cuda:2", "--device cuda:2: there is no device of that number here; there is cpu, cuda:0, cuda:1."),
        ("xpu", "--device xpu: torch finds no such device here; there is cpu, cuda:0, cuda:1."),
        ("meta", "--device meta: torch finds no such device here; there is cpu, cuda:0, cuda:1."),
        ("cpu:1", "--device cpu:1: torch finds no such device here; there is cpu, cuda:0, cuda:1."),
    ],
)
def test_what_is_not_there_is_told_with_what_is(two: list[int], name: str, sentence: str) -> None:
    with pytest.raises(UserError) as told:
        device.device_named(name)
    assert str(told.value) == sentence


def test_bf16_on_a_device_without(two: list[int]) -> None:
    device.refuse_precision("fp32")
    device.ask_for("cuda:0")
    with pytest.raises(UserError, match="precision=bf16: Old GPU 0 does not compute in bfloat16"):
        device.refuse_precision("bf16")
    device.ask_for("cpu")
    device.refuse_precision("bf16")


def test_what_a_backend_does_not_tell_is_none() -> None:
    cpu = torch.device("cpu")
    assert device.free_bytes(cpu) is None
    assert device.allocated_bytes(cpu, peak=True) is None


@pytest.mark.parametrize("name", ["cuda:one", "CUDA", "0", "cuda:"])
def test_a_word_that_is_no_device(lab: Lab, name: str) -> None:
    assert "should be a kind of device, or one of them" in lab.refused_run(f"--device={name}")


@pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has an accelerator")
def test_every_verb_that_runs_a_model_refuses_a_device_that_is_not_there(lab: Lab) -> None:
    sentence = "--device xpu:3: torch finds no such device here; there is cpu."
    assert lab.refused_run("--device=xpu:3") == sentence
    assert lab.refused("sweep", *lab.words, "--device=xpu:3") == sentence
    assert lab.refused("time", "nothing", "--device=xpu:3") == sentence
    assert lab.refused("check", "method=magnitude", "--device=xpu:3") == sentence


def test_the_record_names_the_device(lab: Lab) -> None:
    import json

    told = lab.run("--device=cpu", "--json")
    assert json.loads(told.out)["provenance"]["device"] == device.product(torch.device("cpu"))
