"""Oracle: embeddings and tiles of the original LLaVE code, and its hardness-weighted loss with gradients."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertTokenizer

from tests.beside import SHARED, needs
from vlbench.capability import Batch, contrasted
from vlbench.compression.saved import load_model, open_checkpoint, save_model
from vlbench.compression.state import Compression
from vlbench.errors import UserError
from vlbench.plugins.table import table
from vlbench.structure import check_structure
from vlbench.task import Sample

ORACLES = SHARED / "oracles"
TINY = ORACLES / "families" / "tiny_llave"
BEFORE, AFTER = [5, 6, 7], [8, 9, 10, 11]
needs_oracles = needs(TINY)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


def folder_of(folder: Path, **config: Any) -> Path:
    """The recorded checkpoint, with what it lacks of a published one: a tokenizer (its ids are the oracle's words), and
    the heads of its vision tower, which are not so400m's."""
    shutil.copy(TINY / "model.safetensors", folder)
    told = json.loads((TINY / "config.json").read_text())
    told |= {"vision_config": {"num_attention_heads": 4}, **config}
    (folder / "config.json").write_text(json.dumps(told))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(5, 127))]
    BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)
    return folder


def opened(folder: Path) -> Any:
    cls = table("models").get("llave-0.5b").load()
    return open_checkpoint(cls, cls.cards[0], folder)[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    if not TINY.is_dir():
        pytest.skip("the recorded tiny_llave is not beside this checkout")
    return opened(folder_of(tmp_path_factory.mktemp("llave")))


@pytest.fixture(scope="module")
def expected() -> Any:
    return np.load(TINY / "expected.npz")


def view_of(model: Any, name: str) -> Any:
    pixels = torch.from_numpy(np.asarray(Image.open(TINY / f"{name}.png").convert("RGB")).copy())
    return model.views(pixels.permute(2, 0, 1).contiguous()).on(torch.device("cpu"), torch.float32)


@needs_oracles
@pytest.mark.parametrize("name", ["square", "wide", "tall", "large"])
def test_an_images_tiles_and_embedding_are_the_originals(model: Any, expected: Any, name: str) -> None:
    """The original resizes with Pillow, we with torchvision: within a grey level, and 7e-5 in the embedding."""
    view = view_of(model, name)
    assert list(view.pixels.shape) == expected[f"{name}_tiles"].tolist()
    for tile, corner in ((view.pixels[0], "first"), (view.pixels[-1], "last")):
        assert np.abs(tile[:, :4, :4].numpy() - expected[f"{name}_{corner}_tile_corner"]).max() <= 2 / 255 + 1e-6
    state = model.encode([view])[0]
    assert len(state.tokens) + len(BEFORE) + len(AFTER) == int(expected[f"{name}_inputs_length"])
    prefix = model._prefix([state], [BEFORE])
    found = model.last_states([prefix], [0], [AFTER])
    assert np.abs(found.numpy() - expected[f"{name}_embedding"]).max() <= 1e-4


@needs_oracles
def test_a_texts_embedding_is_the_originals(model: Any, expected: Any) -> None:
    empty = model._prefix([], [])
    ids = [[5, 6, 7, 8, 9, 10], [5, 6, 7]]
    found = model.last_states([empty], [0, 0], ids).numpy()
    assert np.abs(found[:1] - expected["text_embedding"]).max() <= 2e-6
    assert np.abs(found - expected["text_embedding_padded"]).max() <= 2e-6


@needs_oracles
def test_embeddings_are_of_length_one_and_each_its_own(model: Any, tmp_path: Path) -> None:
    views = [view_of(model, "square"), view_of(model, "wide")]
    samples = [Sample("0", (Path("0"),), texts=("w5 w6", "w7")), Sample("1", (Path("1"),), texts=("w8",))]
    batch = Batch(samples, views, torch.tensor([[0], [1]]))
    found = model.embed(model.encode(batch.images), batch)
    for one, alone in zip(found, ([0], [1]), strict=True):
        assert torch.allclose(one["image"].norm(), torch.tensor(1.0))
        again = model._image_vectors(model.encode([views[alone[0]]]), [[0]])[0]
        assert torch.allclose(one["image"], again, atol=1e-6)
    assert found[0]["texts"].shape == (2, 32)
    assert torch.allclose(found[0]["texts"][1], model.vectors([], [], ["w7"])[0], atol=1e-6)
    save_model(tmp_path / "saved", model, Compression())
    other, _ = load_model(tmp_path / "saved")
    assert torch.equal(other.embed(other.encode(batch.images), batch)[1]["image"], found[1]["image"])
    check_structure(model.net, model.structure())


@needs_oracles
def test_what_nothing_says_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="32 wide, and nothing says how many heads"):
        opened(folder_of(tmp_path, vision_config={}))


@needs_oracles
def test_a_missing_vision_tower_is_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder_of(tmp_path)
    kept = {k: v for k, v in load_file(tmp_path / "model.safetensors").items() if "vision_tower" not in k}
    save_file(kept, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"no vision tower .*: add the tensors of google/siglip-so400m-patch14-384"):
        opened(tmp_path)


@needs(ORACLES / "neighbours" / "llave_loss_a.npz")
def test_the_hardness_weighted_loss_is_the_originals() -> None:
    file = ORACLES / "neighbours" / "llave_loss_a"
    arrays = np.load(f"{file}.npz")
    for number, case in enumerate(json.loads(Path(f"{file}.json").read_text())["cases"]):
        with torch.enable_grad():
            query, target = (torch.tensor(arrays[name], requires_grad=True) for name in ("query", "target"))
            loss = contrasted(query, target, torch.arange(len(query)), case["logit_scale"], case["alpha"]).loss()
            loss.backward()
        assert float(loss) == pytest.approx(float(arrays[f"loss/{number}"]), rel=1e-10)
        for name, tensor in (("query", query), ("target", target)):
            assert np.abs(tensor.grad.numpy() - arrays[f"grad_{name}/{number}"]).max() <= 1e-10
