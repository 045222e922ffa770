"""Oracle: patches, projected tokens and logits of the original Prismatic code on tiny checkpoints of its own layout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from copy import copy, deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import BertTokenizer

from tests.beside import SHARED, needs
from tests.nn.test_kinds import close_gates, random_keep
from vlbench.capability import Batch
from vlbench.compression.cut import Cut, cut
from vlbench.compression.saved import load_model, open_checkpoint, save_model
from vlbench.compression.state import Compression
from vlbench.errors import UserError
from vlbench.plugins.table import table
from vlbench.structure import check_structure
from vlbench.task import Sample

TINY = SHARED / "oracles" / "families" / "tiny_prismatic"
pytestmark = needs(TINY)
KINDS = {"dinosiglip": "prism-dinosiglip-224px-7b", "clip": "prism-clip-7b"}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


def folder_of(kind: str, folder: Path, **config: Any) -> Path:
    """The recorded checkpoint, with a tokenizer and the heads of its sizes, which no file says."""
    shutil.copytree(TINY / kind, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("expected.npz"))
    told = json.loads((folder / "config.json").read_text())
    told |= {"vision_config": {"num_heads": 4}, "text_config": {"num_attention_heads": 4}, **config}
    (folder / "config.json").write_text(json.dumps(told))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(5, 64))]
    BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)
    return folder


def opened(kind: str, folder: Path) -> Any:
    cls = table("models").get(KINDS[kind]).load()
    return open_checkpoint(cls, next(c for c in cls.cards if c.name == KINDS[kind]), folder)[0]


@pytest.fixture(scope="module", params=KINDS)
def made(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    if not TINY.is_dir():
        pytest.skip("the recorded tiny_prismatic is not beside this checkout")
    kind: str = request.param
    model = opened(kind, folder_of(kind, tmp_path_factory.mktemp(kind)))
    return model, np.load(TINY / kind / "expected.npz")


def pixels_of(model: Any, expected: Any) -> Tensor:
    """(I, towers, 3, S, S): the recorded ones, each tower's own."""
    towers = [expected["pixels"], expected["pixels_siglip"]][: len(model.config["vision"])]
    return torch.from_numpy(np.stack(towers, 1))


def test_patches_projection_and_logits_are_the_originals(made: tuple[Any, Any]) -> None:
    model, expected = made
    patches = model.net.patches(pixels_of(model, expected))
    assert np.abs(patches.numpy() - expected["patches"]).max() <= 3e-5
    projected = model.net.projector(patches)
    assert np.abs(projected.numpy() - expected["projected"]).max() <= 5e-5
    for row, ids in enumerate(expected["input_ids"]):
        words = model.language.embed(torch.from_numpy(ids)[None])[0]
        stream = torch.cat([words[:1], projected[row], words[1:]])[None]
        out = model.net.language(inputs_embeds=stream).logits[0]
        assert np.abs(out.numpy() - expected["logits"][row]).max() <= 5e-5


def test_the_stream_begins_with_one_word_and_the_image(made: tuple[Any, Any]) -> None:
    """What `answer` reads is the original's [BOS, image, words]."""
    model, expected = made
    ids = expected["input_ids"][0].tolist()
    states = [model.encode([view_of(model)])[0]]
    prefix = model._prefix(states, [ids[:1]])
    _, read = next(iter(model.language.read([prefix], torch.tensor([0]), [ids[1:]])))
    words = model.language.embed(torch.tensor([ids]))[0]
    want = model.net.language(inputs_embeds=torch.cat([words[:1], states[0].tokens, words[1:]])[None]).logits[0, -1]
    assert float((read.logits[0] - want).abs().max()) <= 1e-6 * float(want.abs().max())
    prompt = model.turn("w5 w6", 1)
    first, rest = model._divided(prompt)
    assert [*first, *rest] == model.tokenizer(prompt.removeprefix("<image>")).input_ids[:-1]
    assert len(first) == 1


def view_of(model: Any) -> Any:
    raw = torch.randint(0, 256, (3, 40, 70), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return model.views(raw).on(torch.device("cpu"), model.dtype)


def batch_of(model: Any) -> Batch:
    samples = [Sample("0", (Path("0"),), "w5 w6", target={"w7": 1.0})]
    return Batch(samples, [view_of(model)], torch.tensor([[0]]), {"prompt": "{}"})


@pytest.mark.parametrize("number", [0, 1])
def test_a_cut_model_equals_the_gated_one_and_reloads(made: tuple[Any, Any], number: int, tmp_path: Path) -> None:
    """By every attention's narrow unit, and by its widest. RMSNorm computes in float32."""
    model = copy(made[0])
    model.net = deepcopy(made[0].net).double()
    gated, small = copy(model), copy(model)
    gated.net, small.net = deepcopy(model.net), deepcopy(model.net)

    def structure(of: Any) -> Any:
        found = of.structure()
        return found if number == 0 else found.with_units(lambda site: (site, *site.variants)[-1].unit)

    keep = random_keep(structure(gated), 0)
    check_structure(gated.net, structure(gated))
    close_gates(gated.net, structure(gated), keep)
    cuts = Cut.of(structure(small), keep)
    cut(small.net, structure(small), keep)
    want = gated.answer_outputs(batch_of(gated)).logits[0][0]
    assert float((small.answer_outputs(batch_of(small)).logits[0][0] - want).abs().max()) <= 1e-6
    assert float((model.answer_outputs(batch_of(model)).logits[0][0] - want).abs().max()) > 1e-3
    small.net.float()
    save_model(tmp_path / "saved", small, Compression(cuts=[cuts]))
    other, _ = load_model(tmp_path / "saved")
    assert float(other.answer_loss(batch_of(other))) == float(small.answer_loss(batch_of(small)))


def test_a_frozen_tower_that_is_not_there_is_named(tmp_path: Path) -> None:
    folder_of("dinosiglip", tmp_path)
    (tmp_path / "dino_featurizer.safetensors").unlink()
    with pytest.raises(
        UserError, match=r"no weights of the vision tower dino_featurizer.*vit_large_patch14_reg4_dinov2"
    ):
        opened("dinosiglip", tmp_path)


@pytest.mark.parametrize("part", ["vision_config", "text_config"])
def test_heads_that_nothing_says_are_asked_for(tmp_path: Path, part: str) -> None:
    with pytest.raises(UserError, match=f"nothing says how many heads it has: write .{part}"):
        opened("clip", folder_of("clip", tmp_path, **{part: {}}))
