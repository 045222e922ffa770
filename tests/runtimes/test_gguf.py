"""llama.cpp writes the tokens that our own forward writes: the oracle is greedy decoding without a cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests import minis
from vlbench.compression.state import Compression
from vlbench.errors import RunFailed
from vlbench.runtime import Runtime, Served
from vlbench.serving.export import installed, runtime_named
from vlbench.task import Sample

if missing := [name for name in ("gguf", "xllamacpp") if not installed(name)]:
    pytest.skip(f"{missing[0]} is not installed", allow_module_level=True)
WORDS = ("what color is the ball", "is there a red square", "how many circles", "what is left of the star")
SAMPLES = [Sample(str(i), (), text=text) for i, text in enumerate(WORDS)]


@pytest.fixture
def llama() -> Runtime:
    return runtime_named("gguf")


def cut(way: str) -> Served:
    """heads: groups of heads and neurons, unevenly; none: the second layer has no heads, the third no neurons."""
    model = minis.opened("llava-mini")
    state = Compression(pattern="structured")
    if way == "heads":
        torch.manual_seed(1)
        return Served(*minis.compress(model, way), ())
    if way == "none":
        structure = model.structure().with_units(lambda s: s.variants[0].unit if s.variants else s.unit)
        sizes = {s.name: s.units for s in structure.sites if s.name.startswith("language")}
        keep = {name: torch.arange(units) for name, units in sizes.items()}
        keep["language.1.attention"] = keep["language.2.ffn"] = torch.arange(0)
        minis.cut_to(model, state, keep, structure)
    return Served(model, state, ())


@pytest.mark.parametrize("way", ["dense", "heads"])
def test_forty_greedy_tokens_are_the_same(llama: Runtime, tmp_path: Path, way: str) -> None:
    served = cut(way)
    assert llama.refusal(served) == ""
    llama.write(served, tmp_path)
    told = llama.proof(served, tmp_path, SAMPLES, "answer")
    assert told == {"tokens": 40, "prompts": len(WORDS), "stages": {}}


def test_another_model_is_no_proof(llama: Runtime, tmp_path: Path) -> None:
    llama.write(cut("heads"), tmp_path)
    with pytest.raises(RunFailed, match=r"writes other tokens after the prompt of 0, from token \d+ on: \["):
        llama.proof(cut("dense"), tmp_path, SAMPLES, "answer")


def test_what_llama_cpp_cannot_hold_is_refused_with_the_reason(llama: Runtime) -> None:
    torch.manual_seed(1)
    pairs = Served(*minis.compress(minis.opened("llava-mini"), "cut"), ())
    assert "rotary pairs of layer" in llama.refusal(pairs)
    assert llama.refusal(cut("none")).endswith("without heads or without neurons, and layer 1 is one")
    assert "no language model that goes on from a prompt" in llama.refusal(
        Served(minis.opened("deit-mini"), Compression(), ())
    )
    other = llama.refusal(Served(minis.opened("blip2-mini"), Compression(), ()))
    assert other.startswith("llama.cpp's per-layer widths know llama and qwen2, and its language model is ")
