"""Segmenter with a mask transformer (Strudel et al. 2021, arXiv 2105.05633) on timm's ViT."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vlbench.capability import Awaited, Batch, Outputs, Prediction, Segmenter, Stage
from vlbench.compression.shapes import fit_to, narrow
from vlbench.errors import UserError
from vlbench.evaluation.windows import NOT_FINITE, Sliding, best, class_maps
from vlbench.images.maps import IGNORED, Map, pack_map
from vlbench.model import Card, Model, family, read_config
from vlbench.nn import segmenter as masks
from vlbench.nn import timm as timm_nn
from vlbench.nn.stock import Stock
from vlbench.structure import Structure
from vlbench.tensors.locate import locate
from vlbench.tensors.reading import load_into, read_weights

from . import _segmenter_keys as keys

PIXELS = 1 << 22  # of the windows that go through the model in one pass: 16 of 512 x 512
PACKING = 4  # threads that compress maps while the next image is computed


@family("segmenter.json")
class MaskSegmenter(Model, Segmenter):
    """The unit of work is the window, not the image: where images keep their shapes, encode hands them on and segment
    slides over them. Crops of one size (training, calibration, counting) are encoded to tokens, a window each."""

    net: Any

    @classmethod
    def build(cls, card: Card, config: dict[str, Any], folder: Path) -> MaskSegmenter:
        """config: classes; encoder: arguments of timm's VisionTransformer; decoder: depth, heads (width, dropout);
        norm_eps and pos_embed of the encoder; widths: of the sites that a checkpoint has cut."""
        model = cls(card, config, masks.adopt(_network(config)).eval())
        if config.get("widths"):
            narrow(model.net, model.structure(), config["widths"])
        return model

    @classmethod
    def open(cls, card: Card, folder: Path) -> MaskSegmenter:
        """A folder with our config.json, or a checkpoint of rstrudel (whose variant.yml says the heads), UPop (cut or
        whole) or mmsegmentation."""
        if (folder / "config.json").is_file() and "classes" in (own := read_config(folder)):
            model = cls.build(card, own, folder)
            load_into(model.net, read_weights(folder))
            return model
        settings, tensors = keys.read(folder)
        config, usual = keys.inferred(tensors), cls.architecture(card)
        config = {**(usual if keys.same_dims(config, usual) else config), **settings}
        model = cls.build(card, keys.as_stated(config, folder), folder)
        model.load(tensors)
        return model

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Load the weights of a checkpoint, under our names; the model takes their widths where they are cut."""
        widths = fit_to(self.net, self.structure(), tensors)
        if widths:
            self.config = {**self.config, "widths": {**self.config.get("widths", {}), **widths}}
        load_into(self.net, tensors)

    @classmethod
    def architecture(cls, card: Card) -> dict[str, Any]:
        if card.suite == "mini":
            return read_config(locate(card.checkpoint, card.revision, {}))
        encoder = {"img_size": 512, "patch_size": 16, "embed_dim": 384, "depth": 12, "num_heads": 6}
        return card.sized({"classes": 150, "encoder": encoder, "decoder": {"depth": 2, "heads": 6}, **keys.ORIGINAL})

    def structure(self) -> Structure:
        return masks.structure(self.net)

    def stock(self) -> Stock:
        folder = Path(__file__).parent / "loaders"
        facts = {"attention": timm_nn.cut_attributes(self.net)}
        return Stock.of(facts, folder / "segmenter.py", folder / "segmenter_network.py")

    def stages(self) -> tuple[Stage, ...]:
        """Windows to coarse logits: how they are spread over an image of any size stays here."""
        windows = {"windows": ("windows", "", "", "")}
        return (Stage("masks", "net.masks", windows, lambda model, *tensors: model.net.masks(*tensors)),)

    def encode(self, images: Any) -> Any:
        """A list of images: itself. (I, 3, S, S) crops: their tokens (I, 1 + patches, D), the class token first."""
        return images if isinstance(images, Sequence) else self.net.tokens(images)

    def segment(self, states: Any, batch: Batch) -> Sequence[Prediction]:
        """Maps at the files' own sizes; of crops at the crops' size, which is all that is known of them."""
        if isinstance(states, Tensor):
            size = self._size(batch)
            logits = self.net.spread(self.net.decode(states, size), size)
            best_maps = [best(one, size) for one in logits]
        else:
            best_maps = list(class_maps(self.net, states, batch.sizes, self.sliding(batch.options)))
        sizes, rows = [one.shape for one in best_maps], batch.rows

        def packed(pixels: Tensor) -> list[Prediction]:
            parts = pixels.split([size.numel() for size in sizes])
            maps = (part.view(size).numpy() for part, size in zip(parts, sizes, strict=True))
            with ThreadPoolExecutor(PACKING, thread_name_prefix="pack") as pool:
                texts = list(pool.map(_packed, maps))
            return [{"map": texts[row]} for row in rows]

        return Awaited(len(rows), [torch.cat([one.flatten() for one in best_maps])], packed)  # one copy for all maps

    def segment_outputs(self, batch: Batch) -> Outputs:
        assert batch.maps is not None
        maps, labelled = batch.maps, batch.maps != IGNORED
        size = self._size(batch)
        logits = self.net.spread(self.net.decode(self.encode(batch.images), size), size)[batch.owner[:, 0]]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return Outputs(
            lambda: F.cross_entropy(logits, maps, ignore_index=IGNORED),
            [(logits, labelled / labelled.sum().clamp(min=1))],
        )

    def segment_terms(self, batch: Batch) -> int:
        assert batch.maps is not None
        return int((batch.maps != IGNORED).sum())

    def sliding(self, options: Any) -> Sliding:
        """The task's settings; a window that is left out is the card's with the card's stride. A stride that neither
        has is a window."""
        window = int(options.get("window") or self.card.image.size)
        usual = window if options.get("window") else self.card.image.stride or window
        return Sliding(
            window,
            int(options.get("stride") or usual),
            tuple(options.get("scales") or (1.0,)),
            bool(options.get("flip")),
            at_once=max(1, PIXELS // window**2),
        )

    @staticmethod
    def _size(batch: Batch) -> tuple[int, int]:
        """Height and width of a batch of crops."""
        height, width = batch.images.shape[2:]
        return int(height), int(width)


def _network(config: dict[str, Any]) -> masks.Segmenter:
    """Raises UserError where the configuration describes none."""
    settings = {k: config[k] for k in ("norm_eps", "pos_embed") if k in config}
    try:
        return masks.Segmenter(config["classes"], config["encoder"], config["decoder"], **settings)
    except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RuntimeError, AssertionError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"config.json describes no Segmenter ({reason}): put that of the checkpoint there.") from None


def _packed(numbers: Map) -> str:
    """Raises ValueError for a map with a pixel whose logits are not finite."""
    if (numbers == NOT_FINITE).any():
        raise ValueError("a logit of its map is not finite")
    return pack_map(numbers)
