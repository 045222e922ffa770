"""The published evaluation loops, for comparison: one sample at a time, nothing shared, texts padded.

Each takes a model of ours and one sample's images, and makes the passes of the original code (salesforce/BLIP, UPop):
keys and values of an image are computed again for every candidate, beam, step and pair. They are slow on purpose.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from vlbench.cost.counts import flop_counter
from vlbench.nn.beam import beam_search
from vlbench.nn.caches import with_cache
from vlbench.task import Sample

PADDED_TEXT = 35  # tokens, whatever the caption's own length


def answer(model: Any, image: Tensor, question: str, candidates: Sequence[str], k: int) -> str:
    """BLIP VQA, rank: the k likeliest candidates by their first token, each with the question's states repeated."""
    ids = torch.tensor(model.token_ids([question], 35, model.enc), device=model.device)
    states = model.encode(image[None])
    asked = model.net.text_encoder(input_ids=ids, encoder_hidden_states=states, use_cache=False).last_hidden_state
    answers = model.candidate_ids(candidates)
    length = max(map(len, answers))
    rows, mask = _padded(answers, length)
    start = torch.tensor([[model.bos]])
    first = _decoder(model, start, asked)[0, 0].softmax(-1)[rows[:, 1]]
    best = first.topk(min(k, len(answers))).indices
    logits = _decoder(model, rows[best], asked.repeat(len(best), 1, 1), mask[best])[:, :-1]
    told = F.cross_entropy(logits.transpose(1, 2), rows[best][:, 1:], reduction="none", label_smoothing=0.1)
    return candidates[int(best[(told * mask[best][:, 1:]).sum(1).argmin()])]


def caption(model: Any, image: Tensor, prompt: str, beams: int, max_length: int, min_length: int) -> str:
    """BLIP captions: self-attention is cached, the image's keys and values are not."""
    states = model.encode(image[None])
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())

    def step(tokens: Tensor, rows: Tensor | None) -> Tensor:
        if rows is None:  # the original's first step has all beams too
            tokens = tokens.repeat(beams, 1)
        else:
            cache.reorder_cache(rows if calls else torch.arange(beams))
        calls.append(1)
        out = model.net.text_decoder.bert(
            input_ids=tokens, encoder_hidden_states=states.repeat(len(tokens), 1, 1), is_decoder=True,
            **with_cache(model.net.text_decoder.bert, cache),
        )  # fmt: skip
        logits: Tensor = model.net.text_decoder.cls(out.last_hidden_state[:, -1])
        return logits[:1] if rows is None else logits

    calls: list[int] = []
    start = model.prompt_ids(prompt)
    end = model.net.config.text_config.sep_token_id
    ids, _ = beam_search(
        step, torch.tensor([start]), beams=beams, max_length=max_length, min_length=min_length, end=end
    )
    return str(model.after_prompt(ids[0], start))


def match(model: Any, image: Tensor, text: str) -> float:
    """BLIP's matching logit of one pair: the image's tokens repeated, the text padded to PADDED_TEXT."""
    rows, mask = _padded([[model.enc, *model.text_ids([text])[0][1:]]], PADDED_TEXT)
    states = model.encode(image[None])
    out = model.net.text_encoder(input_ids=rows, attention_mask=mask, encoder_hidden_states=states, use_cache=False)
    return float(model.net.itm_head(out.last_hidden_state[:, 0])[0, 1])


def judge(model: Any, left: Tensor, right: Tensor, sentence: str) -> bool:
    """BLIP NLVR2: both images encoded for each sentence."""
    both = torch.cat(list(model.encode(torch.stack([left, right]))))[None]
    ids = torch.tensor(model.token_ids([sentence], 512, model.enc))
    out = model.net.text_encoder(input_ids=ids, encoder_hidden_states=both, use_cache=False)
    return bool(model.net.cls_head(out.last_hidden_state[:, 0])[0].argmax())


def embed(model: Any, image: Tensor, sample: Sample) -> tuple[Tensor, Tensor]:
    """Image and text embeddings of one sample, each by itself."""
    from vlbench.capability import Batch

    owner = torch.zeros(1, 1, dtype=torch.long)
    found = [
        model.embed(model.encode(image[None]), Batch([Sample("x", (), texts=(t,))], image[None], owner))[0]
        for t in sample.texts
    ]
    return found[0]["image"], torch.cat([f["texts"] for f in found])


def _padded(ids: Sequence[Sequence[int]], length: int) -> tuple[Tensor, Tensor]:
    rows = torch.tensor([[*one, *[0] * (length - len(one))] for one in ids])
    return rows, (torch.arange(length) < torch.tensor([len(one) for one in ids])[:, None]).long()


def _decoder(model: Any, ids: Tensor, states: Tensor, mask: Tensor | None = None) -> Tensor:
    out = model.net.text_decoder.bert(
        input_ids=ids, attention_mask=mask, encoder_hidden_states=states, is_decoder=True, use_cache=False
    )
    logits: Tensor = model.net.text_decoder.cls(out.last_hidden_state)
    return logits


class Hollow(TorchDispatchMode):
    """Matrix products that give zeros: shapes, and with them FLOPs, are those of the real thing, and full-size models
    are counted in seconds on a CPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("mm", "bmm"):
            return args[0].new_zeros((*args[0].shape[:-1], args[1].shape[-1]))
        if name == "addmm":
            return args[1].new_zeros((args[1].shape[0], args[2].shape[1]))
        if name == "_scaled_dot_product_flash_attention_for_cpu":
            q, v = args[0], args[2]
            return q.new_zeros((*q.shape[:-1], v.shape[-1])), q.new_zeros(q.shape[:-1])
        return func(*args, **(kwargs or {}))


@contextmanager
def counted() -> Iterator[FlopCounterMode]:
    """Counts FLOPs, and computes no matrix product."""
    with torch.inference_mode(), Hollow(), flop_counter() as counter:
        yield counter


def emptied(net: nn.Module) -> nn.Module:
    """A module built on the meta device, with zeros."""
    net.to_empty(device="cpu")
    for tensor in [*net.parameters(), *net.buffers()]:
        tensor.detach().zero_()
    return net
