"""What calibration costs against plain forward passes, and metrics, masks and SparseGPT on a large matrix: run it, it
asserts nothing.

    OMP_NUM_THREADS=1 python tests/benchmarks/calibration.py [samples] [repeats]

Bounds meant: Wanda over a 12-block model of width 768 within 1.3 of two forward passes over the same 128 samples, and
1.5 blocks' activations plus statistics more memory; metric and mask of a 4096 x 4096 matrix in 0.5 s on two cores,
SparseGPT on it in 20 s. Other programs on the machine move seconds, and ratios less: passes and pruning alternate, and
the fastest of `repeats` counts.

Memory is told twice: what the process takes from the system, in which the allocator's holes and libraries' buffers are,
and the tensors that live at once, by torch's account of every allocation. That is exact, and linear in the samples: a
part that grows with them (one block's activations) and one that does not (one sample's forward pass, one matrix's
scores and mask), from two small runs.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import accumulate
from pathlib import Path

import timm.models.vision_transformer as timm_vit
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from tests.calibration.pruned import calibrate
from vlbench.calibration.statistics import Statistics
from vlbench.compression.masks import Keep, apply_masks
from vlbench.nn import timm as adopted
from vlbench.pruning.obs import sweep
from vlbench.structure import Block, Structure

SAMPLES = 128
FEW = (2, 10)
BLOCK = 197 * 768 * 4 / 1e6  # MB of one sample's hidden states


def model() -> tuple[nn.Module, Structure]:
    """ViT-B at 224 px with patches of 16: 12 blocks of width 768, 197 tokens."""
    torch.manual_seed(0)
    net = timm_vit.VisionTransformer(embed_dim=768, depth=12, num_heads=12).eval()
    adopted.adopt(net)
    return net, Structure((adopted.vision_tower(net),))


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """(wall clock, CPU time of this process)."""
    wall, used = time.monotonic(), time.process_time()
    work()
    return time.monotonic() - wall, time.process_time() - used


class Peak:
    """The resident memory of this process above what it was, in MB, sampled fifty times a second."""

    def __enter__(self) -> Peak:
        self.start, self.top, self.on = self.now(), 0.0, True
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.on = False
        self.thread.join()

    def _watch(self) -> None:
        while self.on:
            self.top = max(self.top, self.now() - self.start)
            time.sleep(0.02)

    @staticmethod
    def now() -> float:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * 4096 / 1e6


def wanda(net: nn.Module, structure: Structure, runs: list[Callable[[], object]]) -> None:
    def prune(_: Block, seen: Mapping[str, Statistics]) -> None:
        for name, one in seen.items():
            score = net.get_parameter(name).detach().abs().mul_(one.norm.float())  # as methods/wanda.py does
            apply_masks(net, {name: Keep(0.5, "row")(score)})

    calibrate(net, structure, runs, prune)


def forward(net: nn.Module, images: list[Tensor]) -> None:
    with torch.no_grad():
        for image in images:
            net(image)


def tensor_peak(work: Callable[[], object]) -> float:
    """MB of the tensors that live at once, above those that were there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as told:
        work()
    result = told.profiler.kineto_results  # type: ignore[union-attr]
    changes = sorted((e.start_ns(), e.nbytes()) for e in result.events() if e.name() == "[memory]")
    return max(accumulate(size for _, size in changes)) / 1e6


def over_a_model(samples: int, repeats: int) -> None:
    net, structure = model()
    images = [torch.randn(1, 3, 224, 224) for _ in range(samples)]
    runs: list[Callable[[], object]] = [partial(net, image) for image in images]
    forward(net, images[:4])
    passes, pruned, peaks = [], [], []
    for _ in range(repeats):
        passes.append(seconds(lambda: forward(net, images)))
        with Peak() as peak:
            pruned.append(seconds(lambda: wanda(net, structure, runs)))
        peaks.append(peak.top)
    passes.append(seconds(lambda: forward(net, images)))
    for what, at in (("wall clock", 0), ("CPU time", 1)):
        took, two = min(one[at] for one in pruned), 2 * min(one[at] for one in passes)
        print(f"Wanda, {samples} samples: {took:.1f} s of {what}, {took / two:.2f} x two forward passes", flush=True)
    block = BLOCK * samples
    print(f"  memory of the process: {min(peaks):.0f} MB more, {min(peaks) / block:.2f} x a block's ({block:.0f} MB)")
    runs = (runs * FEW[1])[: FEW[1]]
    few, more = (tensor_peak(lambda n=n: wanda(net, structure, runs[:n])) for n in FEW)  # type: ignore[misc]
    each = (more - few) / (FEW[1] - FEW[0])
    fixed = few - FEW[0] * each
    share = (fixed + SAMPLES * each) / (SAMPLES * BLOCK)
    print(f"  tensors: {each / BLOCK:.2f} x a block's + {fixed:.0f} MB; for {SAMPLES} samples {share:.2f} x")


def on_a_matrix(width: int = 4096) -> None:
    weight = torch.randn(width, width)
    seen = Statistics.zeros(width, weight.device, gram=True)
    seen.add(torch.randn(1, 2 * width, width))
    score = weight.abs() * seen.norm.float()
    for what, work in (
        ("Wanda, rows", lambda: Keep(0.5, "row")(weight.abs() * seen.norm.float())),
        ("Wanda, 2:4", lambda: Keep(0.5, n_m=(2, 4))(weight.abs() * seen.norm.float())),
        ("magnitude, matrix", lambda: Keep(0.5)(weight.abs())),
        ("a stable sort of the rows, as in Wanda's code", lambda: score.sort(dim=1, stable=True)),
    ):
        work()
        print(f"{what}, {width} x {width}: {min(seconds(work) for _ in range(3))[0]:.2f} s")
    assert seen.gram is not None
    for name, gram in (("float64", seen.gram), ("float32", seen.gram.float())):
        wall, used = seconds(lambda gram=gram: sweep(weight, gram, Keep(0.5)))  # type: ignore[misc]
        print(f"SparseGPT in {name}, {width} x {width}: {wall:.1f} s ({used:.1f} s of CPU time)")


if __name__ == "__main__":
    print(f"{torch.get_num_threads()} threads")
    told = [int(word) for word in sys.argv[1:]]
    over_a_model(*(told or [SAMPLES]), *([1] if len(told) < 2 else []))
    on_a_matrix()
