"""What the mini models, and the tiny ones of tests/registry/prompted.py, compute, called as their libraries call them.
Imports no vlbench, so that a process without it can compare what it loads with what was recorded here."""

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


def shown(net: Any) -> Tensor:
    """Image tokens of a language model, of two images."""
    size = net.config.vision_config.image_size
    pixels = images(0)[:, :, :size, :size]
    if not hasattr(net, "qformer"):  # LLaVA
        states = net.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2]
        return torch.as_tensor(net.model.multi_modal_projector(states[:, 1:]))
    states = net.vision_model(pixel_values=pixels).last_hidden_state
    queries = net.query_tokens.expand(2, -1, -1)
    words = {"input_ids": ids(3, 5) % 20} if type(net).__name__.startswith("Instruct") else {}
    found = net.qformer(query_embeds=queries, encoder_hidden_states=states, **words).last_hidden_state
    return torch.as_tensor(net.language_projection(found[:, : queries.shape[1]]))


def language(net: Any) -> list[Tensor]:
    """Image tokens, and logits after them and six words of a text, the second padded on its left."""
    tokens = shown(net)
    embedded = torch.cat([tokens, net.get_input_embeddings()(ids(1, 6) % 20)], 1)
    mask = torch.ones(embedded.shape[:2], dtype=torch.long)
    mask[1, :2] = 0
    model = getattr(net, "language_model", None) or net.model.language_model
    told = {"decoder_input_ids": ids(2, 4) % 20} if model.config.is_encoder_decoder else {}
    out = model(inputs_embeds=embedded, attention_mask=mask, **told)
    logits = out.logits if hasattr(out, "logits") else net.lm_head(out.last_hidden_state)
    return [tokens, logits]


def blip2_retrieval(net: Any) -> list[Tensor]:
    states = net.vision_model(pixel_values=images(0)[:, :, :16, :16]).last_hidden_state
    queries = net.query_tokens.expand(2, -1, -1)
    words = net.embeddings(input_ids=ids(1, 5) % 20, query_embeds=queries)
    told = {"encoder_hidden_states": states, "query_length": queries.shape[1]}
    seen = net.qformer(query_embeds=words, **told).last_hidden_state
    return [net.itm_head(seen[:, : queries.shape[1]]), net.text_projection(seen[:, queries.shape[1] :])]


def qwen(net: Any) -> list[Tensor]:
    """Two images of 8 x 8 patches in one row, and logits after each and six words."""
    pixels = torch.randn(128, 96, generator=torch.Generator().manual_seed(0))
    features = net.model.get_image_features(pixels, torch.tensor([[1, 8, 8]] * 2), return_dict=True).pooler_output
    return read_after(net, torch.stack(list(features)))


def internvl(net: Any) -> list[Tensor]:
    return read_after(net, net.model.get_image_features(images(0), return_dict=True).pooler_output)


def read_after(net: Any, tokens: Tensor) -> list[Tensor]:
    embedded = torch.cat([tokens, net.get_input_embeddings()(ids(1, 6))], 1)
    return [tokens, net.lm_head(net.model.language_model(inputs_embeds=embedded).last_hidden_state)]


RUNS = {
    "qwen-mini": qwen,
    "internvl-mini": internvl,
    "blip-vqa-mini": vqa,
    "blip-caption-mini": caption,
    "blip-retrieval-mini": retrieval,
    "blip-nlvr-mini": nlvr,
    "clip-mini": clip,
    "deit-mini": deit,
    "segmenter-mini": segmenter,
    "blip2-retrieval": blip2_retrieval,
}  # and of all others: language


def save(tensors: dict[str, Tensor], file: Path) -> None:
    save_file(tensors, file)


def outputs(name: str, net: Any) -> dict[str, Tensor]:
    """The outputs of a model, float32, on the same inputs in every process."""
    with torch.no_grad():
        return {str(number): one.contiguous() for number, one in enumerate(RUNS.get(name, language)(net.eval()))}
