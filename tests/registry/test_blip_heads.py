"""Every head of BLIP: where it can be cut, cutting, and what its parts must do for that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.calibration.pruned import calibrate
from tests.nn import kinds
from tests.registry.test_blip import vocabulary
from vlbench.capability import Batch
from vlbench.compression.cut import cut
from vlbench.cost.counts import flop_counter
from vlbench.images.spec import ImageSpec
from vlbench.model import Card
from vlbench.nn import blip
from vlbench.nn.attend import Shared
from vlbench.nn.beam import beam_search
from vlbench.plugins.table import table
from vlbench.structure import Structure, check_structure
from vlbench.task import Sample

TEXTS = ["two dogs on the table", "a cat", "the red bus is on the left ?", "one ball"]
OWNER = torch.tensor([[0, 2], [1, 0], [2, 2], [2, 1]])
HEADS = {
    "blip-vqa": ("vision", "question", "answer"),
    "blip-caption": ("vision", "caption"),
    "blip-retrieval-coco": ("vision", "text"),
    "blip-nlvr": ("vision", "text"),
}
every_head = pytest.mark.parametrize("name", HEADS)


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def tiny(name: str, folder: Path) -> Any:
    """A head with random weights, its image 24 and its text 16 wide."""
    (folder / "vocab.txt").write_text("\n".join(vocabulary()[:-2]) + "\n")
    config = {
        "vision_config": {
            "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 3,
            "image_size": 16, "patch_size": 8,
        },
        "text_config": {
            "vocab_size": 60, "hidden_size": 16, "encoder_hidden_size": 24, "intermediate_size": 20,
            "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 24,
            "bos_token_id": 58, "pad_token_id": 0, "sep_token_id": 3,
        },
        "image_text_hidden_size": 8, "merge_from": 1,
    }  # fmt: skip
    cls = table("models").get(name).load()
    model = cls.build(Card(name, "", cls.cards[0].capabilities, "", ImageSpec(16)), config, folder)
    kinds.ready(model.net)
    return model


def batch_of(model: Any) -> Batch:
    """Four samples over three images, with what every head wants of a sample."""
    wanted: dict[str, list[Any]] = {"answer": [{"red": 1.0, "two cats": 0.5}] * 4, "judge": [True, False] * 2}
    targets = wanted.get(model.card.capabilities[0], TEXTS)
    samples = [Sample(str(i), (), TEXTS[i], targets[i], texts=(TEXTS[i],)) for i in range(4)]
    return Batch(samples, kinds.floats(model.net, 3, 3, 16, 16), OWNER)


def loss(model: Any) -> Tensor:
    """The training loss, with the same negatives each time."""
    model.draw = lambda weights: weights.argmax(1)
    found: Tensor = getattr(model, model.card.capabilities[0] + "_loss")(batch_of(model))
    return found


def predictions(model: Any) -> list[Any]:
    """What evaluation gives."""
    batch = batch_of(model)
    pairs = {str(i): [1, i, 2] for i in range(4)}
    options = {"candidates": TEXTS, "k_test": 3, "gallery": TEXTS, "pairs": pairs}
    batch.options = options
    states = model.encode(batch.images)
    if model.card.capabilities[0] == "match":
        return [*[t for p in model.embed(states, batch) for t in p.values()], *model.match(states, batch)]
    return list(getattr(model, model.card.capabilities[0])(states, batch))


def halves(structure: Structure) -> dict[str, Tensor]:
    """Site -> every other unit from the second on."""
    return {site.name: torch.arange(site.units)[1::2] for site in structure.sites}


def close_gates(model: Any, keep: dict[str, Tensor]) -> None:
    for site in model.structure().sites:
        gone = torch.ones(site.units, dtype=torch.bool)
        gone[keep[site.name]] = False
        for part in site.slices:
            if part.gated:
                model.net.get_parameter(part.param).index_fill_(part.dim, part.index[gone].flatten(), 0.0)


@every_head
def test_structure_holds_and_names_its_towers(name: str, tmp_path: Path) -> None:
    model = tiny(name, tmp_path)
    structure = model.structure()
    check_structure(model.net, structure)
    assert tuple(tower.name for tower in structure.towers) == HEADS[name]
    every = {k for k, v in model.net.named_parameters() if v.ndim == 2 and ".layer" in k and "merge_layer" not in k}
    assert set(structure.matrices) == every


@every_head
def test_cut_equals_gated(name: str, tmp_path: Path) -> None:
    """Loss and predictions, through all that the head shares and shortens."""
    whole = tiny(name, tmp_path)
    gated, small = deepcopy(whole), deepcopy(whole)
    keep = halves(whole.structure())
    close_gates(gated, keep)
    cut(small.net, small.structure(), keep)
    assert abs(float(loss(small)) - float(loss(gated))) <= 1e-10
    assert abs(float(loss(gated)) - float(loss(whole))) > 1e-3
    for found, wanted in zip(predictions(small), predictions(gated), strict=True):
        assert torch.allclose(found, wanted, rtol=0, atol=1e-10) if isinstance(found, Tensor) else found == wanted


@every_head
def test_the_loss_reaches_every_prunable_matrix(name: str, tmp_path: Path) -> None:
    model = tiny(name, tmp_path)
    with torch.enable_grad():
        loss(model).backward()
    for matrix in model.structure().matrices:
        grad = model.net.get_parameter(matrix).grad
        assert grad is not None, matrix
        assert float(grad.abs().max()) > 0, matrix


@every_head
def test_calibration_sees_every_matrix_of_one_sample(name: str, tmp_path: Path) -> None:
    """As Wanda is calibrated: the loss of a batch of one sample, block by block."""
    model = tiny(name, tmp_path)
    batch = batch_of(model)
    one = Batch(batch.samples[:1], batch.images, batch.owner[:1])
    seen: dict[str, float] = {}
    capability = model.card.capabilities[0]
    calibrate(
        model.net, model.structure(), [lambda: getattr(model, capability + "_loss")(one)],
        lambda block, statistics: seen.update({k: float(s.norm.min()) for k, s in statistics.items()}),
    )  # fmt: skip
    assert set(seen) == set(model.structure().matrices)
    assert min(seen.values()) > 0


@every_head
def test_samples_do_not_change_each_other(name: str, tmp_path: Path) -> None:
    """Each sample with its own images alone gives what it gives in the batch."""
    model = tiny(name, tmp_path)
    batch = batch_of(model)
    pairs = {str(i): [1, i, 2] for i in range(4)}
    options = {"candidates": TEXTS, "k_test": 3, "gallery": TEXTS, "pairs": pairs}
    methods = ("embed", "match") if "match" in model.card.capabilities else model.card.capabilities
    for method in methods:
        batch.options = options
        together = getattr(model, method)(model.encode(batch.images), batch)
        for i, sample in enumerate(batch.samples):
            alone = Batch([sample], batch.images[OWNER[i]], torch.tensor([[0, 1]]), options)
            (found,) = getattr(model, method)(model.encode(alone.images), alone)
            if isinstance(found, Tensor):
                assert torch.allclose(found, together[i], rtol=0, atol=1e-12)
            elif method == "embed":
                assert all(torch.allclose(found[k], together[i][k], rtol=0, atol=1e-12) for k in found)
            else:
                assert found == together[i]


@every_head
def test_half_precision_runs(name: str, tmp_path: Path) -> None:
    """As precision=bf16 does it: float32 weights under autocast."""
    model = tiny(name, tmp_path)
    model.net.float()
    wanted = loss(model)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(model)
        for prediction in predictions(model):
            assert not isinstance(prediction, Tensor) or bool(torch.isfinite(prediction).all())
    assert float(found) == pytest.approx(float(wanted), rel=0.05)


# Parts ---------------------------------------------------------------------------------------------------------------

OWNERS = {
    "falling": [2, 1, 0],
    "mixed": [2, 0, 1, 2, 0],
    "gaps": [2, 0, 2, 2],
    "even, mixed": [1, 0, 2, 1, 0, 2],
    "even, sorted": [0, 0, 1, 1, 2, 2],
}


@pytest.mark.parametrize("owners", OWNERS.values(), ids=OWNERS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("make", ["Shared", "among", "read_by"])
def test_states_are_shared_by_owners_in_any_order(owners: list[int], masked: bool, beams: int, make: str) -> None:
    net = kinds.ready(blip.adopt(kinds.blip_vqa()))
    owner = torch.tensor(owners)
    states = kinds.floats(net, 3, 6, 24)
    visible = kinds.mask(6, 3, 5).bool() if masked else torch.ones(3, 6, dtype=torch.bool)
    rows = owner.repeat_interleave(beams)
    words = kinds.tokens(len(rows), 4)
    kinds_of: dict[str, Callable[[], Shared]] = {
        "Shared": lambda: Shared(states, owner, visible),
        "among": lambda: Shared.among(states, owner, visible),
        "read_by": lambda: Shared(states, torch.arange(3), visible).read_by(owner),
    }
    shared = kinds_of[make]()
    wanted = net.text_encoder(words, encoder_hidden_states=states[rows], encoder_attention_mask=visible[rows])
    for _ in range(2):  # keys and values computed, then remembered
        found = net.text_encoder(words, encoder_hidden_states=shared)
        assert torch.allclose(found.last_hidden_state, wanted.last_hidden_state, rtol=0, atol=1e-12)


def test_keys_are_computed_once_for_all_readers_and_not_for_states_that_nobody_reads() -> None:
    net = kinds.ready(blip.adopt(kinds.blip_vqa()))
    layer = net.text_encoder.encoder.layer[0].crossattention.self
    seen: list[int] = []
    layer.key.register_forward_hook(lambda _, args, out: seen.append(len(args[0])))
    states = kinds.floats(net, 5, 6, 24)
    shared = Shared(states, torch.arange(5))
    for owner in (torch.tensor([4, 0]), torch.tensor([1, 1, 1])):
        net.text_encoder(kinds.tokens(len(owner), 4), encoder_hidden_states=shared.read_by(owner))
    assert seen == [5]
    net.text_encoder(kinds.tokens(2, 4), encoder_hidden_states=Shared.among(states, torch.tensor([4, 0])))
    assert seen == [5, 2]


@pytest.mark.parametrize("with_image", [True, False])
def test_the_first_token_is_that_of_the_whole_forward(with_image: bool) -> None:
    """And costs less: nothing but keys and values of the last layer is computed for the others."""
    net = kinds.ready(blip.adopt(kinds.blip_vqa())).text_encoder
    ids = kinds.tokens(3, 7)
    context = Shared(kinds.floats(net, 2, 6, 24), torch.tensor([1, 0, 1])) if with_image else None
    with flop_counter() as whole:
        wanted = net(ids, encoder_hidden_states=context).last_hidden_state[:, 0]
    context = context and context.uncached()
    with flop_counter() as short:
        found = blip.first_states(net, ids, context)
    assert torch.allclose(found, wanted, rtol=0, atol=1e-12)
    assert short.get_total_flops() < 0.75 * whole.get_total_flops()


def test_beams_start_as_one_row_a_sentence() -> None:
    """The first step has one row a sentence, and the second one's rows repeat them: the caller's cache holds, for every
    row, the tokens that lead to it."""
    torch.manual_seed(0)
    bigram = torch.randn(12, 12).log_softmax(1)  # logits of the next token, given the last
    held: list[Tensor] = []
    sizes: list[int] = []

    def step(tokens: Tensor, rows: Tensor | None) -> Tensor:
        sizes.append(len(tokens))
        held[:] = [tokens if rows is None else torch.cat([held[0][rows], tokens], 1)]
        seen = held[0]
        return bigram[seen[:, -1]] + 0.3 * bigram[seen[:, 0]] + 0.1 * bigram[seen[:, seen.shape[1] // 2]]

    start = torch.tensor([[3, 4], [5, 6]])
    ids, scores = beam_search(step, start, beams=3, max_length=8, min_length=8, end=0)
    assert sizes == [2, *[6] * 5]

    def total(row: Tensor) -> float:
        held[:] = []
        logits = [step(row[None, :length], None).log_softmax(1)[0] for length in range(2, len(row))]
        for one, length in zip(logits, range(2, len(row)), strict=True):
            if length < 8:
                one[0] = float("-inf")
        return float(sum(one[token] for one, token in zip(logits, row[2:], strict=True)) / len(row))

    assert scores == pytest.approx([total(row) for row in ids], abs=1e-5)
