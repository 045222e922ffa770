"""BLIP-2's retrieval against transformers' own module with the same random weights, a pair at a time."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.nn.kinds import ready
from tests.nn.test_kinds import close_gates, random_keep
from tests.registry import prompted
from vlbench.capability import Batch
from vlbench.compression.cut import cut
from vlbench.evaluation.matching import pack, similarities
from vlbench.structure import check_structure
from vlbench.task import Sample

retrieval = importlib.import_module("vlbench.registry.blip2_retrieval")
CLOSE = 1e-9
TEXTS = (("a red b", "c d"), ("the blue one ?", "a"), ("two", "is a b c d e f"))
CONFIG = {
    "vision_config": prompted.VISION, "qformer_config": {**prompted.QFORMER, "use_qformer_text_input": True},
    "num_query_tokens": 3, "image_text_hidden_size": 6, "text_config": {"model_type": "opt"},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return build(tmp_path_factory.mktemp("retrieval"))


def build(folder: Path) -> Any:
    """A tiny one with random weights, in float64."""
    prompted.tokenizer_into(folder)
    cls = retrieval.Blip2Retrieval
    found = cls.build(cls.cards[0], CONFIG, folder)
    ready(found.net)
    with torch.no_grad():
        found.net.query_tokens.normal_(generator=torch.Generator().manual_seed(0))
    return found


@pytest.fixture(scope="module")
def stock(model: Any) -> Any:
    """The library's own attention; without an image token in its texts."""
    net = retrieval.Blip2Retrieval.network(CONFIG).double().eval()
    net.load_state_dict(model.net.state_dict())
    net.config.image_token_index = None
    return net


def batch(**options: Any) -> Batch:
    samples = [Sample(str(i), (), texts=texts, target=str(i)) for i, texts in enumerate(TEXTS)]
    return Batch(samples, prompted.images(), torch.arange(3)[:, None], options)


def asked(model: Any, stock: Any, image: int, text: str, *, matching: bool) -> Tensor:
    given = model.tokenizer([text], return_tensors="pt")
    with torch.no_grad():
        found: Tensor = stock(
            pixel_values=prompted.images()[image][None], input_ids=given.input_ids,
            attention_mask=given.attention_mask, use_image_text_matching_head=matching,
        ).logits_per_image[0]  # fmt: skip
    return found


def test_similarities_equal_the_librarys(model: Any, stock: Any) -> None:
    """The most alike of an image's queries, for every image and text."""
    with torch.no_grad():
        found = model.embed(model.encode(prompted.images()), batch())
    table, _ = similarities(batch().samples, [pack(one) for one in found])
    wanted = [[float(asked(model, stock, i, t, matching=False)) for row in TEXTS for t in row] for i in range(3)]
    assert np.allclose(table, wanted, atol=1e-6)


def test_matching_equals_the_librarys(model: Any, stock: Any) -> None:
    """Pairs of several images and lengths at once, texts that two images have, images of no text of theirs."""
    gallery = [text for row in TEXTS for text in row]
    pairs = {"0": torch.tensor([0, 1, 4]), "1": torch.tensor([2, 5, 1]), "2": torch.tensor([5])}
    with torch.no_grad():
        found = model.match(model.encode(prompted.images()), batch(gallery=gallery, pairs=pairs))
    for image, (rows, logits) in enumerate(zip(pairs.values(), found, strict=True)):
        wanted = [float(asked(model, stock, image, gallery[t], matching=True)[1]) for t in rows.tolist()]
        assert torch.allclose(logits, torch.tensor(wanted, dtype=torch.float64), atol=CLOSE)


def test_the_loss_reaches_every_matrix_and_no_padding_counts(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two samples of one image are no negatives of one another."""
    check_structure(model.net, model.structure())
    assert [tower.name for tower in model.structure().towers] == ["vision", "qformer"]
    samples = [Sample(str(i), (), texts=(text,)) for i, text in enumerate(("a red b", "c", "the blue one ?", "two"))]
    whole = Batch(samples, prompted.images(), torch.tensor([[0], [0], [1], [2]]))
    taken: list[Tensor] = []
    draw = torch.multinomial

    def noted(weights: Tensor, count: int) -> Tensor:
        taken.append(weights)
        return draw(weights, count)

    monkeypatch.setattr(torch, "multinomial", noted)
    model.net.zero_grad(set_to_none=True)
    model.match_loss(whole).backward()
    for name in model.structure().matrices:
        gradient = model.net.get_parameter(name).grad
        assert gradient is not None, name
        assert float(gradient.abs().max()) > 0, name
    model.net.zero_grad(set_to_none=True)
    for weights in taken:
        assert torch.equal(weights[0, :2], torch.zeros(2))
        assert torch.equal(weights[1, :2], torch.zeros(2))
        assert bool((weights.sum(1) > 0).all())
    with torch.no_grad():
        ((table, _), _) = model.match_outputs(whole).logits
        alone = [model.text_features([s.texts[0]])[0] for s in samples]
        images = model.image_features(model.encode(prompted.images()))
    for i, text in enumerate(alone):
        assert torch.allclose(table[:, i] * retrieval.TEMPERATURE, (images @ text).amax(1)[[0, 0, 1, 2]], atol=CLOSE)


def test_a_cut_model_equals_a_gated_one(model: Any) -> None:
    keep = random_keep(model.structure(), 0)
    gallery = [text for row in TEXTS for text in row]
    options = {"gallery": gallery, "pairs": {str(i): torch.arange(6) for i in range(3)}}
    found = []
    for close in (close_gates, cut):
        other = deepcopy(model)
        with torch.no_grad():
            close(other.net, other.structure(), keep)
            states = other.encode(prompted.images())
            found.append(torch.stack([*other.match(states, batch(**options))]))
    assert torch.allclose(found[0], found[1], atol=CLOSE)


def test_several_vectors_an_image() -> None:
    """The engine takes the most alike of them; one vector is as it was."""
    rng = np.random.default_rng(0)
    images, texts = rng.standard_normal((3, 4, 5)).astype("f4"), rng.standard_normal((6, 5)).astype("f4")
    found = [
        pack({"image": torch.from_numpy(images[i]), "texts": torch.from_numpy(texts[2 * i : 2 * i + 2])})
        for i in range(3)
    ]
    table, _ = similarities(batch().samples, found)
    assert np.allclose(table, np.einsum("iqd,td->iqt", images, texts).max(1), atol=1e-6)


def test_a_folder_opens(model: Any, tmp_path: Path) -> None:
    import json

    from safetensors.torch import save_file

    from vlbench.compression.saved import distinct_tensors

    tensors = {k: v.float() for k, v in distinct_tensors(model.net).items()}
    save_file({**tensors, "embeddings.position_ids": torch.arange(32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    prompted.tokenizer_into(tmp_path)
    card = deepcopy(model.card)
    object.__setattr__(card, "image", type(card.image)(size=24))  # another grid: positions are resized
    other = type(model).open(card, tmp_path)
    assert other.encode(torch.zeros(1, 3, 24, 24)).shape == (1, 10, 24)
