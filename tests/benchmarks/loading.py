"""Peak memory of whole cells (dense, magnitude 0.5, Wanda 0.5 on 8 samples) of a large model in bfloat16, beside the
bytes of its weights: run it, it asserts nothing.

    python -m tests.benchmarks.loading FOLDER [--model internvl3-1b] [--keep]

Random weights in the published layout, written to FOLDER in shards. Each cell is a process of its own; what the same
cell of a tiny model takes (the libraries, mostly) is measured first and taken off.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.initialization import no_init_weights

from tests.registry.folders import INTERNVL, byte_tokenizer
from vlbench.plugins.table import table
from vlbench.tensors.reading import weight_files

METHODS = {
    "dense": "method=dense",
    "magnitude": "method=magnitude sparsity=0.5",
    "wanda": "method=wanda sparsity=0.5 calibration_samples=8",
}
SHARD = "500MB"
TINY: dict[str, Any] = {
    "text_config": {
        "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 512,
    },
    "vision_config": {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 3},
}  # fmt: skip


def write(folder: Path, name: str, other: dict[str, Any]) -> None:
    """The card's architecture, with other sizes where there are any, in bfloat16."""
    family = table("models").get(name).load()
    config = family.architecture(next(c for c in family.cards if c.name == name))
    for part, sizes in other.items():
        config[part] = {**config[part], **sizes}
    kind = getattr(transformers, family.library)
    tokenizer = byte_tokenizer(INTERNVL.special)
    with no_init_weights():
        net = kind(kind.config_class.from_dict(config)).to(torch.bfloat16)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=0.02) if parameter.dim() > 1 else parameter.fill_(1.0)
    net.save_pretrained(folder, max_shard_size=SHARD)
    processor = INTERNVL.processor(tokenizer)
    processor.image_processor = transformers.GotOcr2ImageProcessor()
    processor.save_pretrained(folder)


def peak(folder: Path, name: str, words: str, runs: Path) -> int:
    """Bytes that a cell's process had in memory at most."""
    cell = f"suite=mini task=vqav2 model={name} checkpoint={folder} precision=bf16 limit=2 batch_size=1 {words}"
    running = subprocess.Popen(
        [sys.executable, "-m", "vlbench", "run", *cell.split(), "--runs", str(runs)], stdout=subprocess.DEVNULL
    )
    _, status, used = os.wait4(running.pid, 0)
    if status:
        raise SystemExit(f"{cell} failed")
    return used.ru_maxrss * 1024


def block_statistics(name: str) -> int:
    """Bytes of a block's sums in float64, the largest of the model: small, as Wanda keeps one number a column."""
    family = table("models").get(name).load()
    text = family.architecture(next(c for c in family.cards if c.name == name))["text_config"]
    return 8 * (3 * int(text["hidden_size"]) + int(text["intermediate_size"]))


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("folder", type=Path)
    words.add_argument("--model", default="internvl3-1b")
    words.add_argument("--methods", default=",".join(METHODS))
    words.add_argument("--tiny", action="store_true", help="try the code; measures nothing")
    words.add_argument("--keep", action="store_true", help="leave the weights where they are")
    given = words.parse_args()
    large, small = given.folder / "large", given.folder / "small"
    for folder, sizes in ((small, TINY), (large, TINY if given.tiny else {})):
        if not folder.is_dir():  # elsewhere: a process that is started begins with its parent's peak
            writing = multiprocessing.get_context("spawn").Process(target=write, args=(folder, given.model, sizes))
            writing.start()
            writing.join()
    weights = sum(file.stat().st_size for file in weight_files(large)[0])
    bound = 1.3 * (weights + block_statistics(given.model))
    for method in given.methods.split(","):
        runs = given.folder / f"runs-{method}"
        spare = peak(small, given.model, METHODS[method], runs / "small")
        most = peak(large, given.model, METHODS[method], runs / "large")
        print(
            f"{given.model} {method}: peak {most / 1e9:.2f} GB, {(most - spare) / 1e9:.2f} without the libraries' "
            f"{spare / 1e9:.2f}: {(most - spare) / weights:.2f} x the weights' {weights / 1e9:.2f} GB "
            f"(1.3 x weights and a block's statistics: {bound / 1e9:.2f})"
        )
        shutil.rmtree(runs, ignore_errors=True)
    if not given.keep:
        shutil.rmtree(given.folder)


if __name__ == "__main__":
    main()
