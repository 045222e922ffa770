"""Even against uneven where a model is served: the same parameters removed evenly, unevenly and by depth, and the
speed-up over the dense model in every runtime. Run it; it asserts nothing.

    OMP_NUM_THREADS=2 python -m tests.benchmarks.served [--models deit-small] [--runtimes torch,onnx,openvino]
                                                        [--batch 8] [--pairs 7]

Random weights, float32 on the CPU; what is timed is the image tower (the stage `encode`), dense and cut in turn, in
pairs. even: half of every site. search: widths as one ranking over all sites leaves them, uneven and odd; and the same
rounded to multiples of 8. depth: half of the blocks. `of MACs` is the speed-up as a part of what the MACs promise: 1 is
all of it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.common import loaded
from tests.benchmarks.cut import WAYS, halved, macs, ratio
from tests.benchmarks.search import build
from vlbench.compression.cut import cut
from vlbench.compression.depth import key_of
from vlbench.compression.state import Compression
from vlbench.cost.sample import stated
from vlbench.machine.memory import keep_heap
from vlbench.model import Model
from vlbench.runtime import Part, Serve, Served
from vlbench.serving.export import runtime_named
from vlbench.serving.stages import parts_of

DEPTH = "depth"


def compressed(name: str, way: str) -> tuple[Model, str]:
    """A model of that card that lost half of its prunable entries; "dense": none of them."""
    model, capability, _ = build(name, 224, 1)
    if way == DEPTH:
        structure = model.structure()
        keep = {key_of(t): torch.arange(0, len(t.blocks), 2) for t in structure.towers if len(t.blocks) > 1}
        cut(model.net, structure, keep)
    elif way in WAYS:
        halved(model, *WAYS[way])
    model.net.float().eval()
    return model, capability


def part_of(model: Model, capability: str, size: int) -> Part:
    """The image tower with a batch of the stated sample."""
    images = stated(capability).make(model, size, False).images
    (stage, *_) = (stage for stage in model.stages() if stage.name == "encode")
    (part,) = parts_of(model, [stage], {"encode": [stage.tensors(images)]})
    return part


@contextmanager
def served(name: str, model: Model, part: Part) -> Iterator[Serve]:
    """The stage, written for a runtime and opened there; torch is the stage itself."""
    if name == "torch":

        def compute(tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
            with torch.inference_mode():
                return part.stage.compute(model, *tensors)

        yield compute
        return
    runtime = runtime_named(name)
    with tempfile.TemporaryDirectory(prefix="vlbench-served-") as folder:
        what = Served(model, Compression(), [part])
        runtime.write(what, Path(folder))
        yield runtime.open(what, Path(folder), torch.get_num_threads())["encode"]


def run(serve: Serve, part: Part, size: int) -> Callable[[], Any]:
    images = part.example[0][:1].expand(size, *part.example[0].shape[1:]).contiguous()
    return lambda: serve((images,))


def speed_ups(name: str, models: Mapping[str, Model], capability: str, sizes: tuple[int, ...], pairs: int) -> None:
    """Print a line for each way and batch, of one runtime."""
    dense = part_of(models["dense"], capability, 2)
    with served(name, models["dense"], dense) as first:
        for way, model in models.items():
            if way == "dense":
                continue
            part = part_of(model, capability, 2)
            with served(name, model, part) as second:
                for size in sizes:
                    runs = run(first, dense, size), run(second, part, size)
                    plain = [run(lambda t, m=m, p=p: p.stage.compute(m, *t), p, size) for m, p in
                             ((models["dense"], dense), (model, part))]  # fmt: skip
                    saved = macs(plain[0]) / macs(plain[1])
                    wall, _ = ratio(*runs, pairs * (2 if size == 1 else 1))
                    print(f"{name:9} {way:22} {size:5} {saved:10.2f} {wall:9.2f} {wall / saved:9.2f}", flush=True)


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--models", default="deit-small")
    words.add_argument("--runtimes", default="torch,onnx,openvino")
    words.add_argument("--batch", type=int, default=8, help="that saturates")
    words.add_argument("--pairs", type=int, default=7)
    given = words.parse_args()
    keep_heap()
    for name in given.models.split(","):
        capability = compressed(name, "dense")[1]
        models = {way: compressed(name, way)[0] for way in ("dense", *WAYS, DEPTH)}
        print(f"{name}; {loaded()}")
        print("runtime   cut                    batch   MACs ratio speed-up   of MACs")
        for runtime in given.runtimes.split(","):
            speed_ups(runtime, models, capability, (1, given.batch), given.pairs)


if __name__ == "__main__":
    main()
