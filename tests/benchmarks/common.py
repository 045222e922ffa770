"""What the benchmarks share: models of real size with random weights, rendered photographs and a clock."""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from transformers import BertTokenizer

from vlbench.model import Model, read_config
from vlbench.plugins.table import table

Precision = Literal["fp32", "bf16"]
Size = tuple[int, int]  # height, width

MINI = Path(__file__).parents[2] / "registry" / "mini"
# Task -> the card at real size and the one of the mini world.
CARDS = {
    "vqav2": ("blip-vqa", "blip-vqa-mini"),
    "coco_caption": ("blip-caption", "blip-caption-mini"),
    "coco_retrieval": ("blip-retrieval-coco", "blip-retrieval-mini"),
    "nlvr2": ("blip-nlvr", "blip-nlvr-mini"),
    "imagenet": ("deit-small", "deit-mini"),
    "ade20k": ("segmenter-small", "segmenter-mini"),
}
CLIP = ("clip-vit-b16", "clip-mini")
# Words of a vocabulary, where [PAD], [UNK], [CLS], [SEP] and [MASK] are in it, and the first word of its texts.
FULL = (30522, (0, 100, 101, 102, 103), 1000)  # bert-base-uncased
TINY = (53, (0, 1, 2, 3, 4), 5)  # the mini world's
DISTINCT = 128  # photographs that are rendered; others are links to them, which are decoded like any file
GRAIN = 12.0  # grey levels: makes a photograph of ImageNet's size as large a file as those are, 0.1 MB


@dataclass
class Bench:
    """Where it is measured. folder: for all that is written. tiny: the mini world's architectures and sizes, which
    try the code and measure nothing."""

    device: torch.device
    folder: Path
    tiny: bool = False
    _models: dict[str, Any] = field(default_factory=dict)

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def model(self, names: tuple[str, str]) -> Any:
        """The model of a pair of cards, in float32. It is kept until `drop`."""
        name = names[self.tiny]
        if name not in self._models:
            self._models[name] = build(name, self.vocabulary, self.device)
        return self._models[name]

    def drop(self) -> None:
        """Give the models' memory back."""
        self._models.clear()
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()

    def sync(self) -> None:
        """Wait until the device has done its work."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    @cached_property
    def vocabulary(self) -> Path:
        """A folder with a BERT tokenizer whose words are word0, word1 ..., one token each."""
        folder = self.folder / "vocabulary"
        folder.mkdir()
        count, places, _ = self._words
        words = [f"word{i}" for i in range(count)]
        for place, name in zip(places, ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), strict=True):
            words[place] = name
        (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
        BertTokenizer.from_pretrained(folder, local_files_only=True).save_pretrained(
            folder
        )  # CLIP's finds no vocab.txt
        return folder

    def text(self, tokens: int, seed: int) -> str:
        """A text of so many tokens, the special ones left out; other seeds give other words."""
        count, _, first = self._words
        return " ".join(f"word{first + (seed * 97 + i * 13) % (count - first)}" for i in range(tokens))

    @property
    def _words(self) -> tuple[int, tuple[int, ...], int]:
        return TINY if self.tiny else FULL

    def photographs(self, count: int, size: Size = (480, 640)) -> list[Path]:
        """The first JPEG files of that size, COCO's unless told; the same in every run."""
        size = (48, 64) if self.tiny else size
        folder = self.folder / "photographs-{}x{}".format(*size)
        folder.mkdir(exist_ok=True)
        own = min(count, 8 if self.tiny else DISTINCT)
        paths = [folder / f"{i}.jpg" for i in range(count)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda i: render(paths[i], size, seed=i), [i for i in range(own) if not paths[i].exists()]))
        for i in range(own, count):
            if not paths[i].exists():
                paths[i].hardlink_to(paths[i % own])
        return paths


def build(name: str, vocabulary: Path, device: torch.device) -> Model:
    """The model of a card with random weights, the same in every run. Matrices keep the size of what they are applied
    to: by the libraries' own initial values (1e-10 in transformers' BLIP) every image would look the same."""
    cls = table("models").get(name).load()
    card = next(c for c in cls.cards if c.name == name)
    # Not by architecture(): that of a mini card asks for its weights, too.
    config = _with_our_words(read_config(MINI / name)) if card.suite == "mini" else cls.architecture(card)
    torch.manual_seed(0)
    with torch.device(device):  # a GPU draws 0.4 billion numbers in no time
        model: Model = cls.build(card, config, vocabulary)
        with torch.no_grad():
            for parameter in model.net.parameters():
                if parameter.ndim > 1:
                    fan_in = parameter[0].numel() if parameter.ndim == 4 else parameter.shape[-1]
                    parameter.normal_(0, fan_in**-0.5)
    model.net.to(device).eval()
    return model


def _with_our_words(config: dict[str, Any]) -> dict[str, Any]:
    """A mini model's configuration with the vocabulary TINY, behind which BLIP has two words more."""
    count, (pad, _, _, end, _), _ = TINY
    if text := config.get("text_config"):
        text.update(vocab_size=count + 2, bos_token_id=count, pad_token_id=pad, sep_token_id=end)
    if text := config.get("text_cfg"):
        text.update(vocab_size=count, eos_id=end)
    return config


def render(path: Path, size: Size, seed: int) -> None:
    """A photograph of nothing: blotches of colour under grain."""
    draws = np.random.default_rng(seed)
    coarse = draws.integers(0, 256, size=(6, 8, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    pixels = np.asarray(smooth) + draws.normal(0, GRAIN, size=(*size, 3))
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path, quality=92)


def loaded() -> str:
    """Threads here, and how busy the machine is with other work: what a reader of a measurement should know."""
    busy = os.getloadavg()[0]
    return f"{torch.get_num_threads()} threads of {os.cpu_count()} cores, load {busy:.1f} before it began"


def seconds(work: Callable[[], Any], sync: Callable[[], None], *, repeats: int = 5, inner: int = 1) -> float:
    """Median wall seconds of work(), the device waited for, after one that is not counted. A kernel of microseconds
    goes `inner` times between two looks at the clock."""
    found = []
    for _ in range(repeats + 1):
        sync()
        start = time.perf_counter()
        for _ in range(inner):
            work()
        sync()
        found.append((time.perf_counter() - start) / inner)
    return statistics.median(found[1:])


@contextmanager
def precisely(device: torch.device, precision: Precision) -> Iterator[None]:
    """As the loop computes: without gradients, in bf16 by autocast."""
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        yield


@contextmanager
def without_tf32() -> Iterator[None]:
    """float32 that is float32: on NVIDIA's cards torch rounds the factors of convolutions to 10 bits unless told."""
    convolutions: Any = torch.backends.cudnn
    products: Any = torch.backends.cuda.matmul
    switch: str = "allow_tf32"
    plain: Any = False
    if hasattr(products, "fp32_precision"):  # torch 2.9, which refuses to mix the two ways
        convolutions, switch, plain = convolutions.conv, "fp32_precision", "ieee"
    before = [(place, getattr(place, switch)) for place in (convolutions, products)]
    for place, _ in before:
        setattr(place, switch, plain)
    try:
        yield
    finally:
        for place, value in before:
            setattr(place, switch, value)
