"""How much faster a model is that is cut to half, beside how many MACs it has left: run it, it asserts nothing.

    OMP_NUM_THREADS=2 python -m tests.benchmarks.cost [--models deit-small,blip-vqa] [--device cuda] [--precision bf16]

Random weights, no network, no data. Ratios are of one run, so that they mean something on a busy machine, too.
"""

from __future__ import annotations

import argparse

import torch

from vlbench.cost.architecture import assets
from vlbench.cost.counts import stated_macs
from vlbench.cost.report import cut_uniformly
from vlbench.cost.sample import stated
from vlbench.cost.timing import How, measure
from vlbench.machine.device import device_named
from vlbench.model import Model
from vlbench.plugins.table import table


def random_model(name: str) -> Model:
    """The card's architecture with weights that are random numbers."""
    family = table("models").get(name).load()
    card = next(c for c in family.cards if c.name == name)
    torch.manual_seed(0)
    with assets(card) as folder:
        model: Model = family.build(card, family.architecture(card), folder)
    return model


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--models", default="deit-small,segmenter-small,blip-caption,blip-nlvr,blip-vqa")
    words.add_argument("--device", default="")
    words.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    words.add_argument("--compile", action="store_true")
    given = words.parse_args()
    how = How(device_named(given.device), given.precision, given.compile)
    print(", ".join(f"{key} {value}" for key, value in how.key.items()))
    for name in given.models.split(","):
        (capability, *_) = table("models").get(name).facts["capabilities"]
        print(f"{name}: {stated(capability).inferred}")
        macs, found = [], []
        for fraction in (0.0, 0.5):
            model = random_model(name)
            if fraction:
                cut_uniformly(model, fraction)
            macs.append(stated_macs(model, capability))
            found.append(measure(model, capability, how))
        dense, half = found
        latency = dense["latency_ms"]["p50"] / half["latency_ms"]["p50"]
        rate = half["throughput"]["per_second"] / dense["throughput"]["per_second"]
        print(
            f"  dense {dense['latency_ms']['p50']:.4g} ms, {dense['throughput']['per_second']:.4g} samples/s at batch "
            f"{dense['throughput']['batch']}; half: latency x{latency:.2f}, throughput x{rate:.2f}, MACs x"
            f"{macs[0] / macs[1]:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
