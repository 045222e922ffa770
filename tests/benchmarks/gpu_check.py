"""`make gpu-check`: what only a machine with a GPU can tell, as one table. Some minutes on an H200, no network.

    python -m tests.benchmarks.gpu_check [--only bf16,oom]      on a machine with a GPU
    python -m tests.benchmarks.gpu_check --cpu --tiny           the same code on tiny models: measures nothing

Models have real size and random weights, photographs are rendered. Every check stands by itself: one that fails
prints its error, and the table goes on. Exit codes: 0, 1 when a check failed, 2 where there is no GPU.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from tests.benchmarks.common import CARDS, CLIP, Bench, Precision, precisely, seconds
from tests.benchmarks.evaluation import SLICES, Reader, Slice, Told, coco_retrieval, compare, equal, run_loop, slice_of
from tests.benchmarks.gpu_llava import calibrated
from tests.benchmarks.gpu_rows import WIDTHS, Row, amount, at_its_peak, bytes_held, failed, gigabytes, judged
from vlbench.capability import Batch
from vlbench.compression.masks import keep_n_of_m
from vlbench.nn.attend import Shared

BUDGET = 540.0  # seconds: a check that would begin later is not begun
# Samples of what is reported.
SPLITS = {
    "vqav2": 214_354, "coco_caption": 5_000, "coco_retrieval": 5_000, "flickr30k_retrieval": 1_000, "nlvr2": 6_967,
    "imagenet": 50_000, "ade20k": 2_000,
}  # fmt: skip
COCO_PAIRS, FLICKR_PAIRS = 256 * 6, 128 * 6  # of an image at most: its k best texts, and k images of each of 5 texts
# Samples that are measured: enough for several batches, and for a second of work.
MEASURED = {"vqav2": 640, "coco_caption": 256, "coco_retrieval": 256, "nlvr2": 512, "imagenet": 2048, "ade20k": 128}
COMPARED = 48  # samples that the published loops are asked about, too
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
FLOAT32 = 2e-5  # relative error of a product: float32's is 1e-6 at most, TF32's 3e-4
DRIFT = 0.1  # of bf16's scores from fp32's, as a part of their spread: 8 bits in twelve layers and more
FORGOTTEN = 16 << 20  # bytes that may stay behind: what libraries keep for their next call
TOKENS = (64, 577)  # images and tokens of one batch of BLIP-base at 384


# Machine -------------------------------------------------------------------------------------------------------------


def machine(bench: Bench) -> Iterator[Row]:
    if bench.cuda:
        about = torch.cuda.get_device_properties(bench.device)
        yield Row("device", f"{about.name}, {about.total_memory / 2**30:.0f} GiB, {os.cpu_count()} CPU cores")
        yield Row("CUDA", f"{torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")
    else:
        yield Row("device", f"{platform.machine()}, {os.cpu_count()} CPU cores")
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, timm {timm.__version__}"
    yield Row("versions", f"Python {platform.python_version()}, {versions}")
    found = _errors_in_the_loop(bench)
    told = ", ".join(f"{name} {error:.1g} off" for name, error in found.items())
    yield Row("fp32 without TF32", told, f"<= {FLOAT32}", max(found.values()) <= FLOAT32)


def _errors_in_the_loop(bench: Bench) -> dict[str, float]:
    """Relative errors of a product and of a convolution to patches, computed while the loop runs in precision=fp32."""
    found: dict[str, float] = {}
    kernels = torch.randn(384, 3, 16, 16, device=bench.device)

    def look(images: Tensor) -> None:
        x = torch.randn(64, 3, 64, 64, device=bench.device)
        rows, columns = x.flatten(1), kernels.flatten(1)
        found["products"] = _error(rows[:, :768] @ columns.t(), rows[:, :768].double() @ columns.double().t())
        exact = F.conv2d(x.double(), kernels.double(), stride=16)
        found["convolutions"] = _error(F.conv2d(x, kernels, stride=16), exact)

    with _before(bench.model(CARDS["imagenet"]), "encode", look):
        run_loop(bench, SLICES["imagenet"](bench, 4))
    return found


def _error(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


@contextmanager
def _before(model: Any, method: str, look: Callable[..., None]) -> Iterator[None]:
    """look(the arguments) before each call of a method."""
    own = getattr(model, method)

    def both(*arguments: Any) -> Any:
        look(*arguments)
        return own(*arguments)

    setattr(model, method, both)
    try:
        yield
    finally:
        delattr(model, method)


# bf16 against fp32 ---------------------------------------------------------------------------------------------------


def bf16(bench: Bench) -> Iterator[Row]:
    count = amount(bench, 32)
    works = {work.cards[bench.tiny]: work for work in (slice_of(bench, name, count, 4 * count) for name in SLICES)}
    works[CLIP[bench.tiny]] = replace(coco_retrieval(bench, count, rerank=False), cards=CLIP)
    for name, whole in works.items():
        try:
            yield _drift(bench, name, whole.of(count))
        except Exception as error:
            yield failed(f"bf16 {name}", error)
        bench.drop()


def _drift(bench: Bench, name: str, work: Slice) -> Row:
    """Discrete predictions by the loop, scores by one batch."""
    said = [run_loop(bench, work, precision).predictions for precision in PRECISIONS]
    exact, rough = (_scores(bench, work, precision) for precision in PRECISIONS)
    largest, spread = float((exact - rough).abs().max()), float(exact.std())
    typical = float((exact - rough).square().mean().sqrt()) / spread
    told = (
        f"{equal(*said):.1%} equal; scores {largest:.2g} apart at most (spread {spread:.2g}, rms {typical:.1%} of it)"
    )
    return Row(f"bf16 {name}", told, f"rms <= {DRIFT:.0%} of the spread", typical <= DRIFT)


def _scores(bench: Bench, work: Slice, precision: Precision) -> Tensor:
    """The numbers that the predictions are made of, in float64 on the CPU."""
    model = bench.model(work.cards)
    batch = _batch(bench, work)
    with precisely(bench.device, precision):
        found: Tensor = SCORES[work.task.capability](model, model.encode(batch.images), batch)
    return found.double().cpu()


def _batch(bench: Bench, work: Slice) -> Batch:
    read = Reader(bench, bench.model(work.cards).card.image)
    paths = {path: i for i, path in enumerate(dict.fromkeys(p for s in work.samples for p in s.images))}
    images: Any = [read(path) for path in paths]
    if read.spec.resize == "keep":
        images = [image[:, : read.spec.size, : read.spec.size] for image in images]  # one window of each
    owner = torch.tensor([[paths[p] for p in s.images] for s in work.samples], device=bench.device)
    gallery = [text for s in work.samples for text in s.texts]
    pairs = {s.id: torch.arange(len(gallery)) for s in work.samples}
    return Batch(work.samples, torch.stack(images), owner, {**work.settings, "gallery": gallery, "pairs": pairs})


def _answer(model: Any, states: Tensor, batch: Batch) -> Tensor:
    questions, mask = model.question_states(states, [s.text for s in batch.samples], batch.owner[:, 0])
    ids = model.candidate_ids(batch.options["candidates"][:64])
    found: Tensor = model.rank(questions, mask, ids, len(ids))
    return found


def _caption(model: Any, states: Tensor, batch: Batch) -> Tensor:
    """Of the next words after each word of a given caption."""
    ids, _ = model.targets([s.target[0] for s in batch.samples], batch.options["prompt"])
    found: Tensor = model.logits(ids, Shared(states, batch.owner[:, 0]))
    return found


def _match(model: Any, states: Tensor, batch: Batch) -> Tensor:
    if model.reranks:
        return torch.stack(list(model.match(states, batch)))
    found = list(model.embed(states, batch))
    return torch.stack([f["image"] for f in found]) @ torch.cat([f["texts"] for f in found]).t()


SCORES: dict[str, Callable[[Any, Any, Batch], Tensor]] = {
    "classify": lambda model, states, batch: model.logits(states),
    "answer": _answer,
    "caption": _caption,
    "match": _match,
    "judge": lambda model, states, batch: model.logits(states, [s.text for s in batch.samples], batch.owner),
    "segment": lambda model, states, batch: model.net.decode(states, tuple(batch.images.shape[2:])),
}


# Fast path against naive path ----------------------------------------------------------------------------------------


def published(bench: Bench) -> Iterator[Row]:
    for name in SLICES:
        try:
            work = slice_of(bench, name, amount(bench, COMPARED), 12 if bench.tiny else COCO_PAIRS)
            found = compare(bench, work, repeats=1 if bench.tiny else 3)
            told = f"{found.equal:.2%} equal; {found.ratio:.1f} x ({found.naive:.2f} s to {found.loop.seconds:.2f} s)"
            # Ranks and pixels are thousands, of which some are as near as the last bit: float32 adds in other orders.
            share = 0.99 if name in ("coco_retrieval", "ade20k") else 1.0
            ok = found.equal >= share and (bench.tiny or found.ratio > 1)
            yield Row(f"published loop {name}", told, f"{share:.0%} equal, > 1 x", ok)
        except Exception as error:
            yield failed(f"published loop {name}", error)
        bench.drop()


# Out of memory -------------------------------------------------------------------------------------------------------


def out_of_memory(bench: Bench) -> Iterator[Row]:
    for name, size in (("imagenet", 256), ("vqav2", 64)):
        try:
            yield from _backs_off(bench, name, amount(bench, size))
        except Exception as error:
            yield failed(f"out of memory {name}", error)
        bench.drop()


def _backs_off(bench: Bench, name: str, size: int) -> Iterator[Row]:
    """Two batches of `size` where the first does not fit, against the same where it does."""
    work = SLICES[name](bench, 2 * size)
    run_loop(bench, work, batch_size=size)  # libraries take what they keep
    held = bytes_held(bench)
    plain, peak = at_its_peak(bench, lambda: run_loop(bench, work, batch_size=size))
    room = int((peak - held) * 0.6)
    with _room(bench, work, held + room, size):
        found, most = at_its_peak(bench, lambda: run_loop(bench, work, batch_size=size))
    same = equal(plain.predictions, found.predictions)
    told = f"{same:.2%} equal; backed_off {found.backed_off}"
    if bench.cuda:
        told += f"; {gigabytes(most - held)} where it takes {gigabytes(peak - held)}"
    ok = same == 1 and found.backed_off and not plain.backed_off and most <= held + room
    yield Row(f"out of memory {name}", told, "100% equal, True, 60%", ok)
    if bench.cuda:
        left = bytes_held(bench) - held
        free = torch.cuda.memory_reserved(bench.device) - held
        told = f"{left / 2**20:.1f} MiB still held, {gigabytes(free)} cached"
        yield Row(f"memory given back {name}", told, f"<= {FORGOTTEN >> 20} MiB held", left <= FORGOTTEN)


@contextmanager
def _room(bench: Bench, work: Slice, limit: int, size: int) -> Iterator[None]:
    """No more than `limit` bytes of the GPU. On the CPU, where none can be set: no more than 60 % of `size` samples."""
    if not bench.cuda:

        def refuse(states: Any, batch: Batch) -> None:
            if len(batch.samples) > 0.6 * size:
                raise torch.OutOfMemoryError("as if it did not fit")

        with _before(bench.model(work.cards), work.task.capability, refuse):
            yield
        return
    torch.cuda.empty_cache()  # what is cached counts
    total = torch.cuda.get_device_properties(bench.device).total_memory
    torch.cuda.set_per_process_memory_fraction(limit / total, bench.device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, bench.device)


# Minutes and memory --------------------------------------------------------------------------------------------------


def minutes(bench: Bench) -> Iterator[Row]:
    """Of each task's report split, extrapolated from a slice, without scores and ranking."""
    for name in MEASURED:
        for precision in PRECISIONS:
            try:
                yield from (_retrieval if name == "coco_retrieval" else _minutes)(bench, name, precision)
            except Exception as error:
                yield failed(f"minutes {name} {precision}", error)
        bench.drop()


def _minutes(bench: Bench, name: str, precision: Precision) -> Iterator[Row]:
    work = SLICES[name](bench, amount(bench, MEASURED[name]))
    found, peak = _typical(bench, work, precision)
    yield _row(name, precision, SPLITS[name] * found.seconds / len(work.samples), peak)


def _retrieval(bench: Bench, name: str, precision: Precision) -> Iterator[Row]:
    """The two passes apart: the slice's images have more captions than real ones, so that they have as many pairs."""
    embedded = coco_retrieval(bench, amount(bench, MEASURED[name]), rerank=False)
    count = amount(bench, 16)
    paired = coco_retrieval(bench, count, COCO_PAIRS // 16 if not bench.tiny else 2)
    first, a = _typical(bench, embedded, precision)
    second, b = _typical(bench, paired, precision)
    image = first.seconds / len(embedded.samples)
    pair = second.passes["match"] / (count * len(paired.samples[0].texts) * count)
    for split, pairs in ((name, COCO_PAIRS), ("flickr30k_retrieval", FLICKR_PAIRS)):
        yield _row(split, precision, SPLITS[split] * (image + pairs * pair), max(a, b))


def _typical(bench: Bench, work: Slice, precision: Precision) -> tuple[Told, int]:
    """The quicker of two runs after one that is not counted, and the bytes of the GPU that it takes with its model."""
    if not bench.tiny:
        run_loop(bench, work, precision)
    others = bytes_held(bench) - sum(p.nbytes for p in bench.model(work.cards).net.parameters())
    runs = [at_its_peak(bench, lambda: run_loop(bench, work, precision)) for _ in range(1 if bench.tiny else 2)]
    if any(told.backed_off or not told.predictions for told, _ in runs):
        raise RuntimeError("it ran out of memory")
    found, peak = min(runs, key=lambda run: run[0].seconds)
    return found, peak - others if bench.cuda else 0


def _row(name: str, precision: Precision, total: float, peak: int) -> Row:
    told = f"{total / 60:.2f} min, {SPLITS[name] / total:.1f} samples/s"
    return Row(f"minutes {name} {precision}", told + (f", peak {gigabytes(peak)}" if peak > 0 else ""))


# torch.compile -------------------------------------------------------------------------------------------------------


def compiled(bench: Bench) -> Iterator[Row]:
    """encode, in bf16: images a second with and without, and the seconds of compiling apart."""
    for label, task in (("DeiT-S", "imagenet"), ("ViT-B/384", "coco_caption")):
        try:
            yield from _compiled(bench, label, bench.model(CARDS[task]))
        except Exception as error:
            yield failed(f"torch.compile {label}", error)
        bench.drop()


def _compiled(bench: Bench, label: str, model: Any) -> Iterator[Row]:
    count, side = amount(bench, 64), model.card.image.size
    images = torch.randn(count, 3, side, side, device=bench.device)
    # The tiny run needs no C++ compiler: it traces, and leaves the rest out.
    fast = torch.compile(model.encode, backend="eager" if bench.tiny else "inductor")
    with precisely(bench.device, "bf16"):
        plain = seconds(lambda: model.encode(images), bench.sync, inner=1 if bench.tiny else 10)
        start = time.perf_counter()
        found = fast(images).float()
        bench.sync()
        first = time.perf_counter() - start
        after = seconds(lambda: fast(images), bench.sync, inner=1 if bench.tiny else 10)
        own = model.encode(images).float()
    drift = _error(found, own)
    rates = f"{count / plain:.0f} images/s, compiled {count / after:.0f} ({plain / after:.2f} x)"
    torch._dynamo.reset()  # it holds the model
    yield Row(f"torch.compile {label}", f"{rates}, {drift:.3f} apart", "<= 0.05 apart", drift <= 0.05)
    yield Row(f"compiling {label}", f"{first - after:.1f} s")


# timm ----------------------------------------------------------------------------------------------------------------


def against_timm(bench: Bench) -> Iterator[Row]:
    """DeiT-S in bf16 from the same JPEG files: our loop, and timm/validate.py's with as many workers as cores."""
    size = 4 if bench.tiny else 256
    work = SLICES["imagenet"](bench, amount(bench, MEASURED["imagenet"]))
    kilobytes = sum(s.images[0].stat().st_size for s in work.samples) / len(work.samples) / 1e3
    yield Row("JPEG files", f"{len(work.samples)} of 375 x 500, {kilobytes:.0f} kB each")
    runs = [run_loop(bench, work, "bf16", batch_size=size) for _ in range(2 if bench.tiny else 4)][1:]
    ours = sorted(runs, key=lambda run: run.seconds)[len(runs) // 2]
    rate = len(work.samples) / ours.seconds
    theirs = _timm_rate(bench, size)
    waits = ours.phases["decode"] / ours.seconds
    told = f"{rate:.0f} images/s (waits for files {waits:.0%}), timm {theirs:.0f} ({rate / theirs:.2f} x)"
    yield Row("DeiT-S against timm's loop", told, ">= 0.95 x", judged(bench, rate / theirs >= 0.95))


def _timm_rate(bench: Bench, size: int) -> float:
    """Images a second of validate.py's loop over the same folder, its workers started before."""
    ours = bench.model(CARDS["imagenet"])
    spec = ours.card.image
    known = {"num_classes": ours.config["num_classes"]} if "num_classes" in ours.config else {}
    net = timm.create_model(ours.config["architecture"], pretrained=False, **ours.config.get("model_args", {}), **known)
    net.to(bench.device).eval()
    dataset = timm.data.ImageDataset(str(bench.folder / "imagenet" / "val"))
    loader = timm.data.create_loader(
        dataset, input_size=(3, spec.size, spec.size), batch_size=size, interpolation=spec.interpolation,
        mean=spec.mean, std=spec.std, crop_pct=spec.crop_pct, num_workers=0 if bench.tiny else os.cpu_count() or 1,
        pin_memory=bench.cuda, device=bench.device, persistent_workers=not bench.tiny,
    )  # fmt: skip
    criterion = nn.CrossEntropyLoss().to(bench.device)

    def epoch() -> None:
        for images, target in loader:
            with torch.autocast(bench.device.type, torch.bfloat16):
                output = net(images)
                loss = criterion(output, target)
            top1, top5 = timm.utils.accuracy(output.detach(), target, topk=(1, 5))
            loss.item(), top1.item(), top5.item()

    with torch.inference_mode():
        return len(dataset) / seconds(epoch, bench.sync, repeats=1 if bench.tiny else 3)


# 2:4 -----------------------------------------------------------------------------------------------------------------


def two_of_four(bench: Bench) -> Iterator[Row]:
    """BLIP-base's feed-forward matrices, masked as our 2:4 methods do it, by the hardware's instructions."""
    if not bench.cuda:
        yield Row("2:4 linear", "not tried: torch converts on a GPU only")
        return
    for label, shape in (("768 to 3072", (3072, 768)), ("3072 to 768", (768, 3072))):
        try:
            yield _sparse(bench, label, shape)
        except Exception as error:
            yield failed(f"2:4 linear {label}", error)


def _sparse(bench: Bench, label: str, shape: tuple[int, int]) -> Row:
    torch.manual_seed(0)
    given: dict[str, Any] = {"device": bench.device, "dtype": torch.bfloat16}
    weight = torch.randn(shape, **given) * 0.02
    weight = (weight * keep_n_of_m(weight.float().abs(), 2, 4).to(weight)).contiguous()
    bias, x = torch.randn(shape[0], **given), torch.randn(TOKENS[0] * TOKENS[1], shape[1], **given)
    with torch.no_grad():
        packed = torch.sparse.to_sparse_semi_structured(weight)
        drift = _error(F.linear(x, packed, bias).float(), F.linear(x, weight, bias).float())
        dense, sparse = (seconds(partial(F.linear, x, w, bias), bench.sync, inner=50) for w in (weight, packed))
    told = f"{dense / sparse:.2f} x ({dense * 1e6:.0f} us to {sparse * 1e6:.0f} us), {drift:.4f} apart"
    return Row(f"2:4 linear {label}", told, "converts, <= 0.01 apart", drift <= 0.01)


# The table -----------------------------------------------------------------------------------------------------------

CHECKS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "machine": machine, "sparse": two_of_four, "compile": compiled, "timm": against_timm, "oom": out_of_memory,
    "bf16": bf16, "llava": calibrated, "published": published, "minutes": minutes,
}  # fmt: skip


def rows(bench: Bench, names: Sequence[str], budget: float = BUDGET) -> Iterator[Row]:
    """Of these checks, as they come."""
    start = time.monotonic()
    for name in names:
        if time.monotonic() - start > budget:
            yield Row(name, f"not begun: {budget / 60:.0f} minutes are over", "to be tried", False)
            continue
        try:
            yield from CHECKS[name](bench)
        except Exception as error:
            yield failed(name, error)
        bench.drop()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make gpu-check", description="What only a machine with a GPU can tell.")
    parser.add_argument("--cpu", action="store_true", help="with --tiny: on the CPU")
    parser.add_argument("--tiny", action="store_true", help="the mini world's architectures: tries the code")
    parser.add_argument("--only", default=",".join(CHECKS), help=f"checks, of {', '.join(CHECKS)}")
    told = parser.parse_args(arguments)
    names = told.only.split(",")
    if unknown := [name for name in names if name not in CHECKS]:
        parser.error(f"no check {unknown[0]!r}: {', '.join(CHECKS)}")
    if told.cpu and not told.tiny:
        parser.error("--cpu needs --tiny: models of real size would take hours")
    if not told.cpu and not torch.cuda.is_available():
        print(
            f"gpu-check: torch {torch.__version__} sees no GPU on this machine; ARGS='--cpu --tiny' tries the script "
            "on tiny models.",
            file=sys.stderr,
        )
        return 2
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vlbench-gpu-check-") as folder:
        bench = Bench(torch.device("cpu" if told.cpu else "cuda:0"), Path(folder), told.tiny)
        print(
            "  ".join(f"{h:{w}}" for h, w in zip(("check", "measured", "wanted", "ok"), WIDTHS, strict=True)).rstrip()
        )
        found = []
        for row in rows(bench, names):
            print(row, flush=True)
            found.append(row)
    bad = sum(row.ok is False for row in found)
    note = "; tiny models: the times mean nothing" if told.tiny else ""
    print(f"{len(found)} rows, {bad} failed, {(time.monotonic() - start) / 60:.1f} minutes{note}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
