"""GGUF for llama.cpp: the language model of a vision-language model, with the heads and neurons that each layer has.

llama.cpp's architecture `deci` reads arrays of head counts, key/value head counts and feed-forward widths, one number a
layer, so that a model cut layer by layer is held as it is. The width of a head is one number for all: a model whose
rotary pairs were cut is refused. Its rotary embedding turns neighbours (2i, 2i + 1) where transformers turns halves
(i, i + d/2): rows of queries and keys are put in that order.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import RunFailed
from ..runtime import Runtime, Serve, Served, runtime
from ..task import Sample

FILE = "model.gguf"
TOKENS = 40  # written greedily after each prompt
KNOWN = ("llama", "qwen2")  # transformers' model_type of the language model


@runtime("gguf", title="llama.cpp", packages=("gguf", "xllamacpp"), extra="gguf")
class Gguf(Runtime):
    """model.gguf, float32. Proved by the tokens that llama.cpp writes after the run's own prompts, without the image,
    whose tokens llama.cpp would take from a projector file of its own."""

    staged = False

    def version(self) -> str:
        import importlib.metadata

        return f"llama.cpp of xllamacpp {importlib.metadata.version('xllamacpp')}"

    def refusal(self, served: Served) -> str:
        language = getattr(served.model, "language", None)
        config = getattr(getattr(language, "net", None), "config", None)
        if config is None:
            return "it has no language model that goes on from a prompt"
        if config.model_type not in KNOWN:
            kinds = " and ".join(KNOWN)
            return f"llama.cpp's per-layer widths know {kinds}, and its language model is {config.model_type}"
        if served.state.adapters:
            return "adapters stand beside its weights: merge them first"
        width = _width(config)
        for number, layer in enumerate(language.net.layers):  # type: ignore[union-attr]
            attention = layer.self_attn
            if not (attention.q_proj.out_features and layer.mlp.up_proj.out_features):
                return f"llama.cpp holds no layer without heads or without neurons, and layer {number} is one"
            if attention.head_dim != width or len(getattr(attention, "pairs", range(width // 2))) != width // 2:
                return (
                    f"llama.cpp has one head width for all layers, and rotary pairs of layer {number} were cut: prune "
                    "whole heads and neurons instead"
                )
        return ""

    def write(self, served: Served, folder: Path) -> Sequence[str]:
        import gguf

        language: Any = served.model.language  # type: ignore[attr-defined]
        writer = gguf.GGUFWriter(folder / FILE, "deci")
        _write_sizes(writer, language.net)
        _write_words(writer, served.model.tokenizer, int(language.net.config.vocab_size))  # type: ignore[attr-defined]
        for name, tensor in _tensors(language.net, language.head):
            writer.add_tensor(name, np.ascontiguousarray(tensor.detach().float().cpu().numpy()))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return ["the language model alone: image tokens come from the vision tower, which export --to onnx holds."]

    def open(self, served: Served, folder: Path, threads: int) -> Mapping[str, Serve]:
        return {}

    def proof(self, served: Served, folder: Path, samples: Sequence[Sample], capability: str) -> dict[str, Any]:
        """TOKENS greedy tokens after each prompt, ours and llama.cpp's. Raises RunFailed where one differs."""
        model: Any = served.model
        prompts = {tuple(_prompt(model, capability, sample)): sample.id for sample in samples}
        written = _completed(folder / FILE, [list(prompt) for prompt in prompts], TOKENS)
        for (prompt, name), its in zip(prompts.items(), written, strict=True):
            mine = _greedy(model.language, prompt, TOKENS)
            if model.language.end in mine:  # what follows the end is nobody's business
                mine = mine[: mine.index(model.language.end)]
                its = its[: len(mine)]
            if mine != its:
                at = next(i for i in range(len(mine)) if mine[i : i + 1] != its[i : i + 1])
                raise RunFailed(
                    f"no proof: llama.cpp writes other tokens after the prompt of {name}, from token {at} on: "
                    f"{its[at : at + 5]} in the place of {mine[at : at + 5]}."
                )
        return {"tokens": TOKENS, "prompts": len(prompts), "stages": {}}


def _width(config: Any) -> int:
    """Of a head of the original model."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _write_sizes(writer: Any, net: Any) -> None:
    config, layers = net.config, net.layers
    width = _width(config)
    writer.add_block_count(len(layers))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_vocab_size(config.vocab_size)
    writer.add_head_count([layer.self_attn.q_proj.out_features // width for layer in layers])
    writer.add_head_count_kv([layer.self_attn.k_proj.out_features // width for layer in layers])
    writer.add_feed_forward_length([layer.mlp.up_proj.out_features for layer in layers])
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = getattr(config, "rope_parameters", None) or {}
    writer.add_rope_freq_base(float(rope.get("rope_theta", getattr(config, "rope_theta", 10000.0))))


def _write_words(writer: Any, tokenizer: Any, count: int) -> None:
    """The vocabulary as llama.cpp's SentencePiece-like one, whose scores follow the order of the merges (the ids), as
    its own converter does for tokenizers without scores. Prompts of the proof are token ids and need none of it."""
    import gguf

    words: dict[int, str] = {number: word for word, number in tokenizer.get_vocab().items()}
    special = set(tokenizer.all_special_ids)
    kinds = gguf.TokenType
    tokens, types = [], []
    for number in range(count):
        word = words.get(number, f"<unused{number}>")
        tokens.append(word.encode("utf-8"))
        if number == tokenizer.unk_token_id:
            types.append(kinds.UNKNOWN)
        elif number in special:
            types.append(kinds.CONTROL)
        elif number not in words:
            types.append(kinds.UNUSED)
        elif len(word) == 6 and word.startswith("<0x"):
            types.append(kinds.BYTE)
        else:
            types.append(kinds.NORMAL)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(number) for number in range(count)])
    writer.add_token_types([int(kind) for kind in types])
    for name in ("bos", "eos", "unk", "pad"):
        marked = getattr(tokenizer, f"{name}_token_id", None)
        if marked is not None and marked < count:
            getattr(writer, f"add_{name}_token_id")(marked)


def _tensors(net: Any, head: Any) -> list[tuple[str, Tensor]]:
    """llama.cpp's names."""
    width = _width(net.config)
    tensors = [
        ("token_embd.weight", net.embed_tokens.weight),
        ("output_norm.weight", net.norm.weight),
        ("output.weight", head.weight),
    ]
    for number, layer in enumerate(net.layers):
        attention, mlp, at = layer.self_attn, layer.mlp, f"blk.{number}"
        parts = {"attn_q": attention.q_proj, "attn_k": attention.k_proj, "attn_v": attention.v_proj}
        tensors += [(f"{at}.attn_norm.weight", layer.input_layernorm.weight)]
        for name, linear in {**parts, "attn_output": attention.o_proj}.items():
            turned = name in ("attn_q", "attn_k")
            tensors.append((f"{at}.{name}.weight", _neighbours(linear.weight, width) if turned else linear.weight))
            if linear.bias is not None:
                tensors.append((f"{at}.{name}.bias", _neighbours(linear.bias, width) if turned else linear.bias))
        tensors += [
            (f"{at}.ffn_norm.weight", layer.post_attention_layernorm.weight),
            (f"{at}.ffn_gate.weight", mlp.gate_proj.weight),
            (f"{at}.ffn_up.weight", mlp.up_proj.weight),
            (f"{at}.ffn_down.weight", mlp.down_proj.weight),
        ]
    return tensors


def _neighbours(rows: Tensor, width: int) -> Tensor:
    """(heads * width, ...) rows whose rotary pairs are (i, i + width/2) -> rows where they are (2i, 2i + 1)."""
    turned: Tensor = rows.reshape(-1, 2, width // 2, *rows.shape[1:]).transpose(1, 2).flatten(0, 2)
    return turned


def _prompt(model: Any, capability: str, sample: Sample) -> list[int]:
    """The run's own prompt, begun as the language model's texts begin."""
    ids = model.prompt_ids(model.template(capability).replace("{}", sample.text or ""))
    start = model.language.net.config.bos_token_id
    return list(ids) if start is None or list(ids[:1]) == [start] else [start, *ids]


@torch.no_grad()
def _greedy(language: Any, prompt: Sequence[int], count: int) -> list[int]:
    """The likeliest next tokens by our own forward, computed anew for each: no cache can be at fault."""
    ids = torch.tensor([list(prompt)], device=language.head.weight.device)
    for _ in range(count):
        hidden = language.net(input_ids=ids, use_cache=False).last_hidden_state
        ids = torch.cat([ids, language.head(hidden[:, -1]).argmax(-1, keepdim=True)], 1)
    return [int(one) for one in ids[0, len(prompt) :]]


# What the other process does: llama.cpp ends its process where a file displeases it. stdin: prompts; stdout: tokens.
ASK = """
import json, sys
import xllamacpp

params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_ctx, params.n_parallel, params.warmup, params.verbosity = int(sys.argv[3]), 1, False, 0
server = xllamacpp.Server(params)
asked = {"n_predict": int(sys.argv[2]), "temperature": 0.0, "top_k": 1, "logprobs": 1, "cache_prompt": False}
found = []
for prompt in json.load(sys.stdin):
    told = server.handle_completions({**asked, "prompt": prompt})
    told = json.loads(told) if isinstance(told, (str, bytes)) else told
    found.append([one["id"] for one in told["choices"][0]["logprobs"]["content"]])
print(json.dumps(found), flush=True)
"""


def _completed(file: Path, prompts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """What llama.cpp writes after each prompt. Raises RunFailed with its last words where it does not open the file."""
    room = max(map(len, prompts)) + count + 1
    words = [sys.executable, "-c", ASK, str(file), str(count), str(room)]
    done = subprocess.run(words, input=json.dumps(prompts), capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or "nothing").splitlines()[-1][:300]
        raise RunFailed(f"no proof: llama.cpp ended with {done.returncode} on {file.name}; it said: {last}")
    tokens: list[list[int]] = json.loads(done.stdout.splitlines()[-1])
    return tokens
