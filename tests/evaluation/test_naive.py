"""The loop against the published loops: the same answers, sample by sample, and a fraction of the FLOPs.

FLOPs are those of BLIP-base, counted on stated lengths; what the published loops should take is the arithmetic of the
papers' shapes (2 FLOP per multiply-accumulate): 506 GFLOP a VQA question, 658 a caption, 262 an NLVR2 example and 24 a
pair of image and caption to re-rank.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import naive
from vlbench.capability import Batch
from vlbench.images.maps import unpack_map
from vlbench.plugins.table import table
from vlbench.task import Sample

pytestmark = pytest.mark.slow

MINI = Path(__file__).parents[2] / "registry" / "mini"
WORDS = ["red", "blue", "circle", "square", "large", "small", "left", "right", "yes", "star"]


def mini(name: str) -> Any:
    """The mini model with random weights, large enough that answers differ."""
    cls = table("models").get(name).load()
    card = next(c for c in cls.cards if c.name == name)
    torch.manual_seed(0)
    model = cls.build(card, cls.architecture(card), MINI / name)
    with torch.no_grad():
        for parameter in model.net.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15)
    model.net.eval()
    return model


def full(name: str, folder: Path) -> Any:
    """The full-size model without its weights: counting needs shapes alone."""
    special = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]"}
    words = [special.get(i, f"word{i}") for i in range(30522)]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    cls = table("models").get(name).load()
    card = next(c for c in cls.cards if c.name == name)
    with torch.device("meta"):
        model = cls.build(card, cls.architecture(card), folder)
    naive.emptied(model.net)
    model.net.eval()
    return model


def text(words: int, seed: int = 0) -> str:
    """A text of so many tokens."""
    return " ".join(f"word{1000 + (seed * 97 + i * 13) % 20000}" for i in range(words))


def pixels(model: Any, count: int, seed: int = 0) -> Tensor:
    size = model.card.image.size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def phrases(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 6))) for _ in range(count)]


@torch.inference_mode()
def test_answers_are_those_of_one_question_at_a_time() -> None:
    model = mini("blip-vqa-mini")
    images, owner = pixels(model, 3), [0, 0, 1, 1, 1, 2]
    questions, candidates = phrases(6, 0), list(dict.fromkeys(phrases(40, 1)))
    samples = [Sample(str(i), (), q) for i, q in enumerate(questions)]
    options = {"decoding": "rank", "k_test": 12, "candidates": candidates}
    batch = Batch(samples, images, torch.tensor(owner)[:, None], options)
    found = [p["answer"] for p in model.answer(model.encode(images), batch)]
    assert found == [naive.answer(model, images[o], q, candidates, 12) for o, q in zip(owner, questions, strict=True)]
    assert len(set(found)) > 1


@torch.inference_mode()
def test_captions_are_those_of_one_image_at_a_time() -> None:
    model = mini("blip-caption-mini")
    images = pixels(model, 5)
    samples = [Sample(str(i), ()) for i in range(5)]
    options = {"beams": 3, "max_length": 14, "min_length": 5, "prompt": "a picture of "}
    batch = Batch(samples, images, torch.arange(5)[:, None], options)
    found = [p["caption"] for p in model.caption(model.encode(images), batch)]
    assert found == [naive.caption(model, image, "a picture of ", 3, 14, 5) for image in images]
    assert len(set(found)) > 1


@torch.inference_mode()
def test_matching_logits_are_those_of_one_pair_at_a_time() -> None:
    model = mini("blip-retrieval-mini")
    images, gallery = pixels(model, 4), phrases(9, 2)
    samples = [Sample(str(i), (), texts=(gallery[2 * i], gallery[2 * i + 1])) for i in range(4)]
    chosen = {"0": [0, 3, 8], "1": [1], "2": [2, 3, 4, 5, 6, 7], "3": [0, 8]}
    options = {"gallery": gallery, "pairs": {k: np.array(v) for k, v in chosen.items()}}
    batch = Batch(samples, images, torch.arange(4)[:, None], options)
    states = model.encode(images)
    for sample, image, logits in zip(samples, images, model.match(states, batch), strict=True):
        wanted = [naive.match(model, image, gallery[t]) for t in chosen[sample.id]]
        assert logits.tolist() == pytest.approx(wanted, abs=2e-5)
    for sample, image, found in zip(samples, images, model.embed(states, batch), strict=True):
        of_image, of_texts = naive.embed(model, image, sample)
        assert torch.allclose(found["image"], of_image, atol=1e-6)
        assert torch.allclose(found["texts"], of_texts, atol=1e-6)


@torch.inference_mode()
def test_judgements_are_those_of_one_sentence_at_a_time() -> None:
    model = mini("blip-nlvr-mini")
    images, owner = pixels(model, 4), [[0, 1], [0, 1], [1, 0], [2, 3], [3, 1], [3, 2]]
    sentences = phrases(6, 3)
    samples = [Sample(str(i), (), s) for i, s in enumerate(sentences)]
    states = model.encode(images)
    found = [p["answer"] for p in model.judge(states, Batch(samples, images, torch.tensor(owner)))]
    assert found == [naive.judge(model, images[a], images[b], s) for (a, b), s in zip(owner, sentences, strict=True)]


@torch.inference_mode()
def test_classes_are_those_of_one_image_at_a_time() -> None:
    model = mini("deit-mini")
    images = pixels(model, 6)
    samples = [Sample(str(i), ()) for i in range(6)]
    found = model.classify(model.encode(images), Batch(samples, images, torch.arange(6)[:, None]))
    for one, image in zip(found, images, strict=True):
        logits = model.net(image[None])[0]
        assert one["top5"] == [model.classes[i] for i in logits.argsort(descending=True, stable=True)[:5]]
    assert len({one["top5"][0] for one in found}) > 1


@torch.inference_mode()
def test_maps_are_those_of_one_window_at_a_time() -> None:
    """Windows of several images go through together; alone, each pixel is the mean of the windows that cover it."""
    model = mini("segmenter-mini")
    size = model.card.image.size
    sizes = [(size, size), (size, size + 40), (size + 24, size)]
    images = [torch.randn(3, *s, generator=torch.Generator().manual_seed(i)) for i, s in enumerate(sizes)]
    samples = [Sample(str(i), ()) for i in range(3)]
    batch = Batch(samples, images, torch.arange(3)[:, None], {"window": size, "stride": size - 16}, sizes)
    for one, image in zip(model.segment(model.encode(images), batch), images, strict=True):
        total, times = torch.zeros(model.config["classes"], *image.shape[1:]), torch.zeros(image.shape[1:])
        for top in starts(image.shape[1], size):
            for left in starts(image.shape[2], size):
                window = image[None, :, top : top + size, left : left + size]
                total[:, top : top + size, left : left + size] += model.net(window)[0]
                times[top : top + size, left : left + size] += 1
        assert np.array_equal(unpack_map(one["map"]), (total / times).argmax(0).numpy())


def starts(length: int, size: int) -> list[int]:
    """Where windows begin: every size - 16 pixels, the last one at the end."""
    found = list(range(0, max(1, length - size + 1), size - 16))
    return found if found[-1] + size >= length else [*found, length - size]


def test_flops_of_a_vqa_question(tmp_path: Path) -> None:
    """COCO: 5.3 questions an image, here 5 of 9 words; 128 candidates, of which most are one word and one is six."""
    model = full("blip-vqa", tmp_path)
    image, questions = pixels(model, 1), [text(7, i) for i in range(5)]
    candidates = [text(1 if i % 8 else 2 + i // 8 % 3, i) for i in range(127)] + [text(6, 500)]
    samples = [Sample(str(i), (), q) for i, q in enumerate(questions)]
    options = {"decoding": "rank", "k_test": 128, "candidates": candidates}
    with naive.counted() as fast:
        model.answer(model.encode(image), Batch(samples, image, torch.zeros(5, 1, dtype=torch.long), options))
    with naive.counted() as slow:
        naive.answer(model, image[0], questions[0], candidates, 128)
    check(slow.get_total_flops(), fast.get_total_flops() / 5, 506e9, 3.5)


def test_flops_of_a_caption(tmp_path: Path) -> None:
    """Three beams, 10 words and the end after a prompt of four tokens: 11 steps."""
    model = full("blip-caption", tmp_path)
    image, sample, owner = pixels(model, 1), Sample("0", ()), torch.zeros(1, 1, dtype=torch.long)
    options = {"beams": 3, "max_length": 15, "min_length": 15, "prompt": text(3)}
    with naive.counted() as fast:
        model.caption(model.encode(image), Batch([sample], image, owner, options))
    with naive.counted() as slow:
        naive.caption(model, image[0], text(3), 3, 15, 15)
    check(slow.get_total_flops(), fast.get_total_flops(), 658e9, 4.0)


def test_flops_of_re_ranking(tmp_path: Path) -> None:
    """COCO, k = 256: 256 texts an image and 256 images a text are 1,536 pairs an image, of 13 tokens. The image is
    encoded once for each of the two passes (and its features kept by the published loop). A third of the pairs is
    counted, and thrice: the image's keys and values too, which are computed once."""
    model = full("blip-retrieval-coco", tmp_path)
    image, gallery = pixels(model, 1), [text(11, i) for i in range(512)]
    options = {"gallery": gallery, "pairs": {"0": np.arange(512)}}
    batch = Batch([Sample("0", (), texts=tuple(gallery[:5]))], image, torch.zeros(1, 1, dtype=torch.long), options)
    with naive.counted() as encode:
        states = model.encode(image)
    with naive.counted() as embed:
        model.embed(states, batch)
    with naive.counted() as match:
        model.match(states, batch)
    with naive.counted() as slow:
        naive.match(model, image[0], gallery[0])
    once = encode.get_total_flops()
    fast = 2 * once + embed.get_total_flops() + 3 * match.get_total_flops()
    check((slow.get_total_flops() - once) * 1536 + once, fast, 185e15 / 5000, 6.0)


def test_flops_of_a_judgement(tmp_path: Path) -> None:
    """test1: 6,967 sentences about 4,041 pairs; here 7 about 4, of 25 tokens."""
    model = full("blip-nlvr", tmp_path)
    images, pairs = pixels(model, 8), [0, 0, 1, 1, 2, 2, 3]
    owner = torch.tensor([[2 * p, 2 * p + 1] for p in pairs])
    samples = [Sample(str(i), (), text(23, i)) for i in range(7)]
    with naive.counted() as fast:
        model.judge(model.encode(images), Batch(samples, images, owner))
    with naive.counted() as slow:
        naive.judge(model, images[0], images[1], samples[0].text)
    check(slow.get_total_flops(), fast.get_total_flops() / 7, 262e9, 1.5)


def check(slow: float, fast: float, arithmetic: float, gain: float) -> None:
    """The naive count is that of the arithmetic within 10 %, and ours `gain` times smaller at least."""
    told = (
        f"naive {slow / 1e9:.1f} GFLOP (arithmetic {arithmetic / 1e9:.1f}), loop {fast / 1e9:.1f}, {slow / fast:.2f}x"
    )
    print(told)
    assert slow == pytest.approx(arithmetic, rel=0.1), told
    assert slow / fast >= gain, told
