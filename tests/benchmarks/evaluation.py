"""The evaluation loop against the published loops (tests/naive.py) at the size of BLIP-base, DeiT-S and Segmenter-S.

    OMP_NUM_THREADS=2 python -m tests.benchmarks.evaluation [--tasks vqav2,nlvr2] [--slice 4] [--device cuda] ...

Small slices of rendered photographs, random weights, no network. Both ways are timed in one run, so that their ratio
means something on a busy machine, too. Both decode every image they show; the published loops do it again for every
sample, in programs of their own, so that it is told apart and left out of the ratio. The loop's time is all of it but
the scores, which the published times have not either. It asserts nothing: `make gpu-check` does.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tests import naive
from tests.benchmarks.common import CARDS, Bench, Precision, precisely, without_tf32
from vlbench.capability import Batch, Pass
from vlbench.evaluation.loop import Evaluator
from vlbench.evaluation.predictions import Line, Predictions
from vlbench.evaluation.ranks import ranks
from vlbench.evaluation.windows import anchors, at_least, resized
from vlbench.images.maps import LabelMap, unpack_map
from vlbench.images.pipeline import ImageStore, decode, normalise, preprocess
from vlbench.images.spec import ImageSpec
from vlbench.machine.memory import keep_heap
from vlbench.plugins.table import table
from vlbench.task import Sample, Task

BATCH = 64  # samples, suite=full's
CANDIDATES = 3128  # answers of VQAv2's published evaluation
RANKED = 128  # of which so many are scored in full
QUESTIONS_PER_IMAGE = 214_354 / 40_504  # of VQAv2 val
SENTENCES_PER_PAIR = 6_967 / 4_041  # of NLVR2 test1
AT_ONCE = 256  # pairs in one pass of the published re-ranking: k_test on COCO
WINDOWS = 4  # in one pass of the published segmentation
PHASES = ("decode", "transfer", "encode", "predict", "score", "write")


# Slices of tasks -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Slice:
    """Some samples of a task, and the pair of cards that answers them."""

    task: Task
    cards: tuple[str, str]
    samples: list[Sample]
    settings: dict[str, Any]

    def of(self, count: int) -> Slice:
        """The first samples of it."""
        return replace(self, samples=self.samples[:count])


def vqav2(bench: Bench, count: int) -> Slice:
    """Questions of 7 words on average, 5.3 an image; nine of ten candidates are one word, as in VQAv2."""
    name = "COCO_val2014_{:012d}.jpg"
    owner = [int(i / QUESTIONS_PER_IMAGE) for i in range(count)]
    images = bench.photographs(owner[-1] + 1)
    samples = [
        Sample(str(i), (images[o],), bench.text(5 + i % 5, i), cluster=name.format(o)) for i, o in enumerate(owner)
    ]
    size, k = (40, 12) if bench.tiny else (CANDIDATES, RANKED)
    words = [bench.text(1 if i % 10 else 2 + i // 10 % 3, i) for i in range(size)]
    settings = {"decoding": "rank", "k_test": k, "candidates": list(dict.fromkeys(words))}
    _write_answers(bench.folder / "v2_mscoco_val2014_annotations.json", words, count)
    return _slice(bench, "vqav2", samples, settings)


def _write_answers(path: Path, words: Sequence[str], count: int) -> None:
    """VQAv2's file, for the scores."""
    rows = [
        {"question_id": i, "image_id": 0, "answer_type": "other", "multiple_choice_answer": words[0],
         "answers": [{"answer": words[(i + j) % len(words)]} for j in range(10)]}
        for i in range(count)
    ]  # fmt: skip
    path.write_text(json.dumps({"annotations": rows}), encoding="utf-8")


def coco_caption(bench: Bench, count: int) -> Slice:
    """With random weights no caption ends before `max_length`: 20 tokens, where real ones have some 14."""
    images = bench.photographs(count)
    samples = [Sample(str(i), (p,), target=[bench.text(11, 5 * i + j) for j in range(5)]) for i, p in enumerate(images)]
    lengths = {"max_length": 14 if bench.tiny else 20, "min_length": 5}
    work = _slice(bench, "coco_caption", samples, {"beams": 3, "prompt": bench.text(3, 0), **lengths})
    _leave_java_out(work.task)
    return work


def _leave_java_out(task: Any) -> None:
    """METEOR and SPICE start programs that take seconds for the first caption, and none is asked about here."""
    metrics: Any = importlib.import_module("vlbench.tasks._caption_metrics")
    absent = mock.Mock(side_effect=metrics.Unavailable("left out"))

    def scores(samples: Sequence[Sample], said: Sequence[Mapping[str, Any]]) -> Any:
        with mock.patch.multiple(metrics, meteor_statistics=absent, spice=absent):
            return type(task).scores(task, samples, said)

    task.scores = scores


def coco_retrieval(bench: Bench, count: int, texts: int = 5, *, rerank: bool = True) -> Slice:
    """`texts` captions an image, of 11 words on average. Every pair is re-ranked, count x texts of each image: COCO
    takes 256 for each image and each of its five captions, 1,536 at most."""
    images = bench.photographs(count)
    words = [tuple(bench.text(9 + j % 5, i * texts + j) for j in range(texts)) for i in range(count)]
    samples = [Sample(str(i), (p,), texts=t) for i, (p, t) in enumerate(zip(images, words, strict=True))]
    return _slice(bench, "coco_retrieval", samples, {"k_test": count * texts if rerank else 0})


def nlvr2(bench: Bench, count: int) -> Slice:
    """Sentences of 23 words on average, 1.7 a pair."""
    pair = [int(i / SENTENCES_PER_PAIR) for i in range(count)]
    images = bench.photographs(2 * (pair[-1] + 1))
    samples = [
        Sample(f"test1-{p}-0-{i}", (images[2 * p], images[2 * p + 1]), bench.text(15 + i % 17, i), bool(i % 2))
        for i, p in enumerate(pair)
    ]
    return _slice(bench, "nlvr2", samples, {})


def imagenet(bench: Bench, count: int) -> Slice:
    """Photographs of ImageNet's usual size in folders of its layout, which timm reads as well."""
    classes = bench.model(CARDS["imagenet"]).classes[:8]
    samples = []
    for i, path in enumerate(bench.photographs(count, (375, 500))):
        wnid = classes[i % len(classes)]
        file = bench.folder / "imagenet" / "val" / wnid / f"{i:06d}.JPEG"
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            file.hardlink_to(path)
        samples.append(Sample(f"{wnid}/{file.name}", (file,), target=wnid))
    return _slice(bench, "imagenet", samples, {})


def ade20k(bench: Bench, count: int) -> Slice:
    """Photographs of ADE20K's usual size, 1 or 2 windows of 512 each; one scale."""
    images = bench.photographs(count, (512, 683))
    labels = bench.folder / "labels.png"
    with Image.open(images[0]) as image:
        patches = np.random.default_rng(0).integers(1, 41, size=(5, 5), dtype=np.uint8)
        Image.fromarray(patches).resize(image.size, Image.Resampling.NEAREST).save(labels)
    target = LabelMap(labels, zero_ignored=True)
    samples = [Sample(f"ADE_val_{i:08d}", (path,), target=target) for i, path in enumerate(images)]
    return _slice(bench, "ade20k", samples, {"window": None, "stride": None, "scales": [1.0], "flip": False})


SLICES: dict[str, Callable[[Bench, int], Slice]] = {
    "vqav2": vqav2, "coco_caption": coco_caption, "coco_retrieval": coco_retrieval, "nlvr2": nlvr2,
    "imagenet": imagenet, "ade20k": ade20k,
}  # fmt: skip


def _slice(bench: Bench, name: str, samples: list[Sample], settings: Mapping[str, Any]) -> Slice:
    cls = table("tasks").get(name).load()
    return Slice(cls(bench.folder, cls.Options()), CARDS[name], samples, {**settings, "labelled": True})


# The loop ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Told:
    """One run of the loop. seconds: wall time but for the scores. phases: seconds; decoding, transfer and computing
    overlap, unless the run waited for the device at every phase. passes: seconds of each of the model's methods."""

    lines: list[Line]
    seconds: float
    phases: dict[str, float]
    passes: dict[str, float]
    backed_off: bool

    @property
    def predictions(self) -> list[Any]:
        """Raises RuntimeError for a sample that failed."""
        for line in self.lines:
            if line["status"] != "ok":
                raise RuntimeError(f"sample {line['id']} failed: {line.get('error')}")
        return [line["prediction"] for line in self.lines]


class Watched(Evaluator):
    """Knows how long each pass took, and with `wait` whose time it was: the device's work is waited for at the end of
    each phase, where the loop itself would go on."""

    wait: Callable[[], None] | None = None

    def predict(self, one: Pass, *arguments: Any) -> list[Line]:
        start = time.perf_counter()
        lines = super().predict(one, *arguments)
        self.passes[one.name] += time.perf_counter() - start
        return lines

    @property
    def passes(self) -> dict[str, float]:
        found: dict[str, float] = self.__dict__.setdefault("_passes", defaultdict(float))
        return found

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        with super()._phase(name):
            yield
            if self.wait:
                self.wait()


def run_loop(
    bench: Bench, work: Slice, precision: Precision = "fp32", *, batch_size: int = BATCH, wait: bool = False
) -> Told:
    """Every sample of the slice through the loop, its files decoded anew."""
    model = bench.model(work.cards)
    store = ImageStore(model.card.image, keep_bytes=0)
    loop = Watched(model, work.task, store, settings=work.settings, batch_size=batch_size, precision=precision)
    loop.wait = bench.sync if wait else None
    with tempfile.TemporaryDirectory(dir=bench.folder) as folder:
        bench.sync()
        start = time.perf_counter()
        lines = loop.run(work.samples, Predictions(Path(folder) / "predictions.jsonl"))
        bench.sync()
        total = time.perf_counter() - start
    store.pool.shutdown()
    return Told(lines, total - loop.phases["score"], dict(loop.phases), dict(loop.passes), loop.backed_off)


# The published loops -------------------------------------------------------------------------------------------------


@dataclass
class Reader:
    """Decodes and prepares one image after another. seconds: what that took. sizes: those of the files."""

    bench: Bench
    spec: ImageSpec
    seconds: float = 0.0
    sizes: dict[Path, tuple[int, int]] = field(default_factory=dict)

    def __call__(self, path: Path) -> Tensor:
        self.bench.sync()
        start = time.perf_counter()
        pixels = decode(path)
        self.sizes[path] = (pixels.shape[1], pixels.shape[2])
        prepared = preprocess(pixels, self.spec)
        self.seconds += time.perf_counter() - start
        return normalise(prepared.to(self.bench.device), self.spec)


Published = Callable[[Any, Slice, Reader], list[Any]]


def answers(model: Any, work: Slice, read: Reader) -> list[Any]:
    candidates, k = work.settings["candidates"], work.settings["k_test"]
    return [{"answer": naive.answer(model, read(s.images[0]), s.text, candidates, k)} for s in work.samples]


def captions(model: Any, work: Slice, read: Reader) -> list[Any]:
    how = [work.settings[key] for key in ("prompt", "beams", "max_length", "min_length")]
    return [{"caption": naive.caption(model, read(s.images[0]), *how)} for s in work.samples]


def judgements(model: Any, work: Slice, read: Reader) -> list[Any]:
    return [{"answer": naive.judge(model, read(s.images[0]), read(s.images[1]), s.text)} for s in work.samples]


def classes(model: Any, work: Slice, read: Reader) -> list[Any]:
    """One image at a time: for the answers. What a good published loop takes is measured with timm's."""
    found = []
    for sample in work.samples:
        image = read(sample.images[0])[None]
        found += model.classify(model.encode(image), Batch([sample], image, torch.zeros(1, 1, dtype=torch.long)))
    return found


def matches(model: Any, work: Slice, read: Reader) -> list[Any]:
    """BLIP's itm_eval: features of the images are kept, an image's tokens are repeated for each of its pairs and their
    texts padded; a ranking of all pairs in both directions."""
    states = [model.encode(read(s.images[0])[None]) for s in work.samples]
    texts = [text for s in work.samples for text in s.texts]
    ids = [model.text_ids([text])[0] for text in texts]
    image = model.image_features(torch.cat(states))
    similar = image @ torch.cat([_text_features(model, ids[i : i + AT_ONCE]) for i in range(0, len(ids), AT_ONCE)]).t()
    logits = torch.stack([_matching(model, one, ids) for one in states])
    scores = (logits + similar).float().cpu()
    owner = np.repeat(np.arange(len(states)), [len(s.texts) for s in work.samples])
    of_images, of_texts = ranks(scores, scores, owner)
    return [{"text_rank": int(rank), "image_ranks": of_texts[owner == i].tolist()} for i, rank in enumerate(of_images)]


def _text_features(model: Any, ids: list[list[int]]) -> Tensor:
    rows, mask = naive._padded(ids, naive.PADDED_TEXT)
    hidden = model.net.text_encoder(input_ids=rows, attention_mask=mask, use_cache=False).last_hidden_state
    return torch.nn.functional.normalize(model.net.text_proj(hidden[:, 0]), dim=-1)


def _matching(model: Any, states: Tensor, ids: list[list[int]]) -> Tensor:
    """(texts,) matching logits of one image (1, N, D) with every text."""
    rows, mask = naive._padded([[model.enc, *one[1:]] for one in ids], naive.PADDED_TEXT)
    found = []
    for some, seen in zip(rows.split(AT_ONCE), mask.split(AT_ONCE), strict=True):
        out = model.net.text_encoder(
            input_ids=some, attention_mask=seen, encoder_hidden_states=states.repeat(len(some), 1, 1), use_cache=False
        )
        found.append(model.net.itm_head(out.last_hidden_state[:, 0])[:, 1])
    return torch.cat(found)


def maps(model: Any, work: Slice, read: Reader) -> list[Any]:
    """Segmenter's inference: an image at a time, four windows in a pass, all logits at the window's size, a softmax."""
    found = []
    for sample in work.samples:
        window = model.card.image.size
        image = at_least(read(sample.images[0]), window)
        places = anchors((image.shape[1], image.shape[2]), window, window)
        crops = torch.stack([image[:, y : y + window, x : x + window] for y, x in places])
        logits = torch.cat([model.net(some).float() for some in crops.split(WINDOWS)])
        total = logits.new_zeros((logits.shape[1], *image.shape[1:]))
        count = logits.new_zeros(image.shape[1:])
        for one, (y, x) in zip(logits, places, strict=True):
            total[:, y : y + window, x : x + window] += one
            count[y : y + window, x : x + window] += 1
        best = resized(total / count, read.sizes[sample.images[0]]).softmax(0).argmax(0)
        found.append({"map": best.to(torch.uint8).cpu().numpy()})
    return found


PUBLISHED: dict[str, Published] = {
    "answer": answers, "caption": captions, "judge": judgements, "classify": classes, "match": matches, "segment": maps,
}  # fmt: skip


class _On:
    """The module torch, whose new tensors are on a device: tests/naive.py is written for the CPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __getattr__(self, name: str) -> Any:
        found = getattr(torch, name)
        if name not in ("tensor", "arange", "zeros"):
            return found
        return lambda *a, **given: found(*a, **{"device": self._device, **given})


def run_published(bench: Bench, work: Slice, precision: Precision = "fp32") -> tuple[list[Any], float, float]:
    """Predictions, and wall seconds of decoding and of all else."""
    model = bench.model(work.cards)
    read = Reader(bench, model.card.image)
    with mock.patch.object(naive, "torch", _On(bench.device)), precisely(bench.device, precision), without_tf32():
        start = time.perf_counter()
        found = PUBLISHED[work.task.capability](model, work, read)
        bench.sync()
        total = time.perf_counter() - start
    return found, read.seconds, total - read.seconds


# Both ----------------------------------------------------------------------------------------------------------------


def equal(one: Sequence[Any], other: Sequence[Any]) -> float:
    """Share of the parts of predictions that are equal: answers, captions, ranks, names among the best five, pixels."""
    a, b = (np.concatenate([_parts(p) for p in found]) for found in (one, other))
    return float((a == b).mean()) if a.shape == b.shape else 0.0


def _parts(prediction: Mapping[str, Any]) -> Any:
    if "map" in prediction:
        found = prediction["map"]
        return (unpack_map(found) if isinstance(found, str) else found).ravel()
    if "text_rank" in prediction:
        return np.array([prediction["text_rank"], *prediction["image_ranks"]])
    return np.ravel([np.asarray(value) for value in prediction.values()])


@dataclass(frozen=True)
class Compared:
    """The loop against the published one, on the same samples. naive, decoding: seconds."""

    samples: int
    equal: float
    naive: float
    decoding: float
    loop: Told
    phases: dict[str, float]

    @property
    def ratio(self) -> float:
        return self.naive / self.loop.seconds


def compare(bench: Bench, work: Slice, precision: Precision = "fp32", *, repeats: int = 1) -> Compared:
    """Both ways over a slice; the loop's time is the median of `repeats`. Both have run before they are timed."""
    run_loop(bench, work, precision)
    run_published(bench, work.of(1), precision)
    runs = [run_loop(bench, work, precision) for _ in range(repeats)]
    middle = statistics.median_low([run.seconds for run in runs])
    loop = next(run for run in runs if run.seconds == middle)
    # On a CPU nothing runs on after a phase: its seconds are its own.
    phases = run_loop(bench, work, precision, wait=True).phases if bench.cuda else loop.phases
    found, decoding, model = run_published(bench, work, precision)
    return Compared(len(work.samples), equal(loop.predictions, found), model, decoding, loop, phases)


def slice_of(bench: Bench, name: str, count: int, pairs: int) -> Slice:
    """`count` samples; of retrieval a quarter of that in images, with as many captions that each has `pairs` pairs."""
    if name == "coco_retrieval":
        images = max(2, count // 4)
        return coco_retrieval(bench, images, max(1, pairs // images))
    return SLICES[name](bench, count * 8 if name == "imagenet" else count)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tests.benchmarks.evaluation")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--slice", type=int, help="samples (8 images each of ImageNet): 4, on a GPU 64")
    parser.add_argument("--pairs", type=int, help="retrieval: pairs of each image: 32, on a GPU COCO's 1536")
    parser.add_argument("--tasks", default=",".join(SLICES))
    parser.add_argument("--tiny", action="store_true", help="the mini world's architectures: tries the code")
    told = parser.parse_args(arguments)
    keep_heap()  # as a run does
    cuda = told.device.startswith("cuda")
    count, pairs = told.slice or (64 if cuda else 4), told.pairs or (1536 if cuda else 32)
    unknown = [name for name in told.tasks.split(",") if name not in SLICES]
    if unknown:
        parser.error(f"no task {unknown[0]!r}: {', '.join(SLICES)}")
    with tempfile.TemporaryDirectory(prefix="vlbench-bench-") as folder:
        bench = Bench(torch.device(told.device), Path(folder), told.tiny)
        print(f"{told.device}, {told.precision}, torch {torch.__version__}, {torch.get_num_threads()} threads")
        print(f"{'':16}{'':>8}{'naive':>9}{'loop':>9}{'naive/':>8}{'equal':>8}   the loop's phases, s")
        heads = "".join(f"{name:>9}" for name in PHASES)
        print(f"{'task':16}{'samples':>8}{'s':>9}{'s':>9}{'loop':>8}{'%':>8} {heads}", flush=True)
        for name in told.tasks.split(","):
            found = compare(bench, slice_of(bench, name, count, pairs), told.precision)
            print(_row(name, found), flush=True)
            bench.drop()
    return 0


def _row(name: str, found: Compared) -> str:
    numbers = f"{found.samples:8d}{found.naive:9.2f}{found.loop.seconds:9.2f}{found.ratio:8.2f}{100 * found.equal:8.2f}"
    return f"{name:16}{numbers} " + "".join(f"{found.phases.get(phase, 0.0):9.3f}" for phase in PHASES)


if __name__ == "__main__":
    sys.exit(main())
