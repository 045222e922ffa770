"""What every mini model computes, called as its library calls it: imports no vlbench, so that a process without it can
compare what it loads with what was recorded here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

SIDE = 64  # of the mini models' images


def images(seed: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def ids(seed: int, length: int, count: int = 2) -> Tensor:
    """Tokens that are no special ones."""
    return torch.randint(5, 50, (count, length), generator=torch.Generator().manual_seed(seed))


PADDED = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])


def vqa(net: Any) -> list[Tensor]:
    image = net.vision_model(pixel_values=images(0)).last_hidden_state
    question = net.text_encoder(ids(1, 6), attention_mask=PADDED, encoder_hidden_states=image).last_hidden_state
    told = net.text_decoder(
        ids(2, 4), encoder_hidden_states=question, encoder_attention_mask=PADDED, use_cache=False
    ).logits
    return [question, told]


def caption(net: Any) -> list[Tensor]:
    image = net.vision_model(pixel_values=images(0)).last_hidden_state
    told = net.text_decoder(ids(2, 7), encoder_hidden_states=image, use_cache=False).logits
    with_cache = net.text_decoder(ids(2, 7), encoder_hidden_states=image, use_cache=True).logits
    return [told, with_cache]


def retrieval(net: Any) -> list[Tensor]:
    out = [net(ids(1, 6), images(0), use_itm_head=head, attention_mask=PADDED) for head in (True, False)]
    return [one.itm_score for one in out]


def nlvr(net: Any) -> list[Tensor]:
    if type(net).__name__ == "BlipNlvr":  # network.py's
        return [net(images(0), images(3), ids(1, 6), PADDED)]
    seen = [net.vision_model(pixel_values=one).last_hidden_state for one in (images(0), images(3))]
    out = net.text_encoder(ids(1, 6), attention_mask=PADDED, encoder_hidden_states=torch.cat(seen, 1))
    return [net.cls_head(out.last_hidden_state[:, 0])]


def clip(net: Any) -> list[Tensor]:
    return [net.encode_image(images(0)), net.encode_text(ids(1, 32))]


def deit(net: Any) -> list[Tensor]:
    return [net(images(0))]


def segmenter(net: Any) -> list[Tensor]:
    return [getattr(net, "masks", net)(images(0))]


RUNS = {
    "blip-vqa-mini": vqa,
    "blip-caption-mini": caption,
    "blip-retrieval-mini": retrieval,
    "blip-nlvr-mini": nlvr,
    "clip-mini": clip,
    "deit-mini": deit,
    "segmenter-mini": segmenter,
}


def save(tensors: dict[str, Tensor], file: Path) -> None:
    save_file(tensors, file)


def outputs(name: str, net: Any) -> dict[str, Tensor]:
    """The outputs of a mini model, float32, on the same inputs in every process."""
    with torch.no_grad():
        return {str(number): one.contiguous() for number, one in enumerate(RUNS[name](net.eval()))}
