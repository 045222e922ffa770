"""BLIP's retrieval against the original code's outputs (float64)."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.oracles import Oracle
from tests.registry.test_blip import close, opened, recorded
from vlbench.capability import Batch
from vlbench.nn.attend import Shared
from vlbench.restoring.momentum import Momentum, MomentumOptions, Queue
from vlbench.task import Sample

keys = importlib.import_module("vlbench.registry._blip_keys")


@pytest.fixture(scope="module", params=recorded("blip_retrieval_eval"))
def matcher(
    request: pytest.FixtureRequest, shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Oracle, Any]:
    """The file holds the momentum twins and the queues as well, as the released ones do."""
    oracle = Oracle(shared / "oracles" / "models" / f"{request.param}.npz")
    return oracle, opened("blip-retrieval-coco", oracle, ("sd/", "sd_m/"), tmp_path_factory.mktemp("retrieval"))


@pytest.fixture(scope="module")
def images(matcher: tuple[Oracle, Any]) -> Tensor:
    oracle, model = matcher
    with torch.no_grad():
        found: Tensor = model.encode(oracle["in/images"].double())
    return found


def evaluated(oracle: Oracle, **options: Any) -> Batch:
    texts = oracle.facts["texts"]
    own = oracle.facts["img2txt"]
    samples = [Sample(str(i), (), texts=tuple(texts[t] for t in own[str(i)])) for i in range(len(own))]
    return Batch(samples, None, torch.arange(len(own))[:, None], options)


def chosen(oracle: Oracle) -> tuple[Tensor, Tensor]:
    """The candidates of each image and of each text, best first."""
    sims, k = oracle["out/sims"], oracle.facts["config"]["k"]
    return sims.topk(k, 1).indices, sims.t().topk(k, 1).indices


def test_embeddings_equal_the_original(matcher: tuple[Oracle, Any], images: Tensor) -> None:
    oracle, model = matcher
    with torch.no_grad():
        found = model.embed(images, evaluated(oracle))
    image, text = torch.stack([f["image"] for f in found]), torch.cat([f["texts"] for f in found])
    assert close(images, oracle["out/image_embeds"])
    assert close(image, oracle["out/image_feat"])
    assert close(text, oracle["out/text_feat"])
    assert close(image @ text.t(), oracle["out/sims"])


def test_re_ranking_equals_the_original(matcher: tuple[Oracle, Any], images: Tensor) -> None:
    """ITM[1] + similarity of each direction's candidates; the pairs of both are asked for at once."""
    oracle, model = matcher
    of_image, of_text = chosen(oracle)
    wanted = torch.zeros_like(oracle["out/sims"], dtype=torch.bool).scatter_(1, of_image, True)
    wanted |= torch.zeros_like(wanted.t()).scatter_(1, of_text, True).t()
    pairs = {str(i): row.nonzero()[:, 0].numpy() for i, row in enumerate(wanted)}
    with torch.no_grad():
        found = model.match(images, evaluated(oracle, gallery=oracle.facts["texts"], pairs=pairs))
    logit = torch.full(wanted.shape, float("nan"), dtype=torch.float64)
    for i, one in enumerate(found):
        logit[i, pairs[str(i)]] = one
    assert close(logit.gather(1, of_image), oracle["out/itm_logits_i2t"][..., 1])
    assert close(logit.t().gather(1, of_text), oracle["out/itm_logits_t2i"][..., 1])
    score = logit + oracle["out/sims"]
    for table, picked, direction in ((score, of_image, "i2t"), (score.t(), of_text, "t2i")):
        matrix = torch.full(table.shape, -100.0, dtype=torch.float64).scatter_(1, picked, table.gather(1, picked))
        assert close(matrix, oracle[f"out/score_matrix_{direction}"])


def test_both_logits_equal_the_original(matcher: tuple[Oracle, Any], images: Tensor) -> None:
    oracle, model = matcher
    picked = chosen(oracle)[0]
    ids, mask = oracle["in/text_ids"][picked.flatten()], oracle["in/text_mask"][picked.flatten()]
    owner = torch.arange(len(images)).repeat_interleave(picked.shape[1])
    with torch.no_grad():
        logits = model.matching_logits(ids, mask, Shared(images, owner))
    assert close(logits, oracle["out/itm_logits_i2t"].flatten(0, 1))


def test_tokens_equal_the_original(matcher: tuple[Oracle, Any]) -> None:
    oracle, model = matcher
    found = model.text_ids(oracle.facts["texts"])
    recorded = zip(oracle["in/text_ids"], oracle["in/text_mask"], strict=True)
    assert found == [ids[mask.bool()].tolist() for ids, mask in recorded]


@pytest.mark.parametrize("ranks", ["all", "same"])
def test_matching_loss_equals_the_original(
    matcher: tuple[Oracle, Any], monkeypatch: pytest.MonkeyPatch, ranks: str
) -> None:
    """With the recorded negatives in place of drawn ones."""
    oracle, model = matcher
    negatives = iter(oracle[f"out/train_{ranks}_rank/negatives"])
    monkeypatch.setattr(model, "draw", lambda weights: next(negatives))
    rows = oracle["in/train_text_rows"]
    ids, mask = oracle["in/text_ids"][rows], oracle["in/text_mask"][rows]
    idx = oracle["in/train_idx"]
    owner = torch.arange(len(idx))
    with torch.no_grad():
        states = model.encode(oracle["in/train_images"].double())
        loss = model.matching_loss(states, owner, ids, mask, torch.zeros(len(idx), len(idx)), idx[:, None] == idx)
    assert close(loss, oracle[f"out/train_{ranks}_rank/loss_itm"])


@pytest.mark.parametrize("ranks", ["all", "same"])
def test_momentum_loss_equals_the_original(
    matcher: tuple[Oracle, Any], monkeypatch: pytest.MonkeyPatch, ranks: str
) -> None:
    """One step past the first epoch, with a twin that has moved away and a queue that knows some of the images. Its
    features go to the front of the queue."""
    oracle, model = matcher
    momentum, batch = following(oracle, model)
    negatives = iter(oracle[f"out/train_{ranks}_rank/negatives"])
    monkeypatch.setattr(model, "draw", lambda weights: next(negatives))
    with torch.no_grad():
        loss = momentum(batch)
    told = oracle.tensors(f"out/train_{ranks}_rank/")
    assert close(loss, told["loss_ita"] + told["loss_itm"], 1e-10)
    queue = momentum.queue
    assert queue is not None
    assert close(queue.images, told["image_queue_after"].t())
    assert close(queue.texts, told["text_queue_after"].t())
    assert torch.equal(queue.numbers, told["idx_queue_after"][0])
    assert queue.next == int(told["ptr_after"])


def following(oracle: Oracle, model: Any) -> tuple[Momentum, Batch]:
    """The recorded twin, queue and batch. Images are named by their numbers, which the queue holds as well."""
    rows, numbers = oracle["in/train_text_rows"].tolist(), oracle["in/train_idx"].tolist()
    texts = [oracle.facts["texts"][row] for row in rows]
    samples = [Sample(str(i), (Path(str(n)),), texts=(t,)) for i, (n, t) in enumerate(zip(numbers, texts, strict=True))]
    train = [Sample(str(n), (Path(str(n)),)) for n in range(oracle.facts["config"]["queue"])]
    options = MomentumOptions(steps=1, lr=1.0, loss="momentum", momentum=oracle.facts["momentum"])
    momentum = Momentum(model, "match", options, train, epoch=1, seed=0)
    twin = {k.replace("_m.", "."): v for k, v in oracle.tensors("sd_m/").items() if "_m." in k}
    momentum.twin.net.load_state_dict({k: v.double() for k, v in keys.converted(twin).items()}, strict=False)
    queued = {k: oracle[f"sd_m/{k}_queue"] for k in ("image", "text", "idx")}
    momentum.queue = Queue(queued["image"].t().double(), queued["text"].t().double(), queued["idx"][0].clone())
    momentum.seen = 1
    return momentum, Batch(samples, oracle["in/train_images"].double(), torch.arange(len(rows))[:, None])


def trained(oracle: Oracle, owner: list[int]) -> Batch:
    """Captions with the images they show."""
    samples = [Sample(str(i), (), texts=(oracle.facts["texts"][i],)) for i in range(len(owner))]
    return Batch(samples, oracle["in/images"].double(), torch.tensor(owner)[:, None])


def test_loss_is_that_of_its_formula(matcher: tuple[Oracle, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Written out pair by pair: targets shared among the captions of one image, negatives of other images only."""
    oracle, model = matcher
    owner = [0, 0, 1, 3, 2, 0]
    n = len(owner)
    negative = iter([torch.tensor([2, 3, 0, 4, 5, 2]), torch.tensor([4, 2, 3, 0, 1, 3])])
    weights: list[Tensor] = []

    def draw(of: Tensor) -> Tensor:
        weights.append(of)
        return next(negative)

    monkeypatch.setattr(model, "draw", draw)
    with torch.no_grad():
        found = model.match_loss(trained(oracle, owner))
        states = model.encode(oracle["in/images"].double())
        image = model.image_features(states)[owner]
        text = model.text_features(oracle.facts["texts"][:n])
        similarity = image @ text.t() / model.net.temp
        contrast = 0.0
        for table in (similarity, similarity.t()):
            for i in range(n):
                log, same = table[i].log_softmax(0), [j for j in range(n) if owner[j] == owner[i]]
                contrast -= sum(float(log[j]) for j in same) / len(same) / n / 2
        pairs = [(i, owner[i], 1) for i in range(n)]
        pairs += [(i, owner[j], 0) for i, j in enumerate([2, 3, 0, 4, 5, 2])]
        pairs += [(j, owner[i], 0) for i, j in enumerate([4, 2, 3, 0, 1, 3])]
        match = 0.0
        for row, shown, label in pairs:
            ids, mask = model.padded([model.text_ids(oracle.facts["texts"])[row]])
            logits = model.matching_logits(ids, mask, Shared(states[[shown]], torch.tensor([0])))
            match -= float(logits.log_softmax(1)[0, label]) / len(pairs)
    assert float(found) == pytest.approx(contrast + match, abs=1e-9)
    for of, table in zip(weights, (similarity.t(), similarity), strict=True):
        wanted = table.softmax(1).masked_fill(torch.tensor(owner)[:, None] == torch.tensor(owner), 0)
        assert close(of, wanted / wanted.sum(1, keepdim=True))


def test_negatives_are_drawn_with_the_global_random_numbers(matcher: tuple[Oracle, Any]) -> None:
    """The training loop saves their state, so that a killed run goes on with the same draws; and a negative is never
    another caption of the same image."""
    _, model = matcher
    weights = torch.tensor([[0.0, 0.7, 0.3], [0.5, 0.0, 0.5]])
    torch.manual_seed(0)
    first = [model.draw(weights).tolist() for _ in range(20)]
    torch.manual_seed(0)
    assert first == [model.draw(weights).tolist() for _ in range(20)]
    assert len({tuple(f) for f in first}) > 1
    assert all(a != 0 and b != 1 for a, b in first)


@pytest.mark.parametrize("owner", [[0], [2, 2, 2]])
def test_a_batch_of_one_image_has_no_negatives(
    matcher: tuple[Oracle, Any], monkeypatch: pytest.MonkeyPatch, owner: list[int]
) -> None:
    """Nothing is drawn, and the loss is that of the pairs that belong together."""
    oracle, model = matcher
    monkeypatch.setattr(model, "draw", None)
    with torch.no_grad():
        loss = model.match_loss(trained(oracle, owner))
    assert bool(torch.isfinite(loss))


def test_temperature_is_read_and_clamped(matcher: tuple[Oracle, Any]) -> None:
    oracle, model = matcher
    assert model.net.temp.item() == pytest.approx(oracle["sd/temp"].item(), abs=1e-12)
    before = model.net.temp.detach().clone()
    with torch.no_grad():
        for value, wanted in ((0.9, 0.5), (0.0001, 0.001)):
            model.net.temp.fill_(value)
            model.match_loss(trained(oracle, [0, 1]))
            assert model.net.temp.item() == pytest.approx(wanted)
        model.net.temp.copy_(before)


def test_a_large_gallery_is_scored_in_pieces(
    matcher: tuple[Oracle, Any], images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few images and few rows at a time, images of several samples and unequal numbers of texts: the same logits."""
    oracle, model = matcher
    texts = oracle.facts["texts"]
    pairs = {"0": [5, 1, 3], "1": [], "2": list(range(len(texts))), "3": torch.tensor([0]), "4": [7, 7]}
    owner = torch.tensor([3, 0, 3, 1, 5])
    batch = Batch([Sample(i, ()) for i in pairs], None, owner[:, None], {"gallery": texts, "pairs": pairs})
    with torch.no_grad():
        whole = model.match(images, batch)
        module = __import__(type(model).__module__, fromlist=["ROWS"])
        monkeypatch.setattr(module, "ROWS", 2)
        monkeypatch.setattr(module, "IMAGES", 1)
        pieces = model.match(images, batch)
        for found, piece, (row, wanted) in zip(whole, pieces, zip(owner, pairs.values(), strict=True), strict=True):
            assert found.shape == (len(wanted),)
            assert close(piece, found, 1e-12)
            for logit, text in zip(found, wanted, strict=True):
                ids, mask = model.padded([model.text_ids(texts)[int(text)]])
                one = model.matching_logits(ids, mask, Shared(images[row][None], torch.tensor([0])))
                assert close(one[0, 1], logit, 1e-12)


def test_a_gallery_is_tokenised_once(matcher: tuple[Oracle, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    oracle, model = matcher
    calls: list[int] = []
    tokenise: Callable[[Any], Any] = model.text_ids
    monkeypatch.setattr(model, "text_ids", lambda texts: calls.append(len(texts)) or tokenise(texts))
    monkeypatch.setattr(model, "_known", None)
    gallery = list(oracle.facts["texts"])
    first = model.gallery_ids(gallery)
    assert model.gallery_ids(list(gallery)) == first
    gallery[0] = "two cats"  # the same list, with another text
    assert model.gallery_ids(gallery)[0] != first[0]
    assert calls == [len(gallery)] * 2
    assert all(ids[0] == model.enc for ids in first)
