"""UPop's search on retrieval with momentum encoders and a queue, against trajectories of the original code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.methods.test_upop_heads import blip, follow, names_of
from tests.methods.upop_code import code_options, code_search
from tests.oracles import Oracle, assert_final_weights
from tests.registry.test_blip import recorded
from tests.registry.test_clip import opened, site_of
from vlbench.capability import Batch
from vlbench.compression.gates import Gates
from vlbench.restoring.momentum import Momentum, Queue
from vlbench.task import Sample


def sample(number: int, image: int, text: str = "") -> Sample:
    return Sample(str(number), (Path(str(image)),), texts=(text,))


def begun(momentum: Momentum, images: Tensor, texts: Tensor, dtype: torch.dtype) -> None:
    """The recorded queue, (d, K), in the place of the random one."""
    numbers = torch.full((images.shape[1],), -100)
    momentum.queue = Queue(images.t().to(dtype).contiguous(), texts.t().to(dtype).contiguous(), numbers)


@pytest.mark.parametrize("name", recorded("search_retrieval"))
def test_blip_end_to_end(shared: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three epochs: the twin's share in the targets grows over the first. The twin has no gates."""
    oracle = Oracle(shared / "oracles" / "models" / f"{name}.npz")
    facts = oracle.facts
    d = facts["dims"]
    model = blip(
        "blip-retrieval-coco", oracle, tmp_path, vw=d["h"], vh=d["heads"], th=d["h"], heads=d["heads"],
        inter=d["inter"], embed=oracle["init/vision_proj.bias"].numel(),
    )  # fmt: skip
    batches = [batch(oracle, model, i) for i in range(facts["nb"])]
    options = code_options("coco_retrieval", sparsity=facts["p"], steps=facts["steps"])
    assert options.interval == facts["interval"]
    assert (options.loss, options.momentum, options.alpha) == ("momentum", 0.995, 0.4)
    samples = [s for b in batches for s in b.samples]
    loss = Momentum(model, "match", options, samples, epoch=facts["nb"], seed=0)
    begun(loss, oracle["init/image_queue"], oracle["init/text_queue"], torch.float64)
    drawn = iter(oracle["negatives"].flatten(0, 1))
    monkeypatch.setattr(model, "draw", lambda weights: next(drawn))
    optimiser = torch.optim.AdamW(model.net.parameters(), lr=facts["lr"], weight_decay=facts["weight_decay"])
    w_sp = {"attention": facts["w_attn"], "ffn": facts["w_mlp"]}
    names = names_of(model.structure(), "text_encoder.encoder.layer")
    follow(oracle, model, names, options, optimiser, lambda step: loss(batches[step % facts["nb"]]), w_sp)
    assert_final_weights(oracle, model.net)
    with torch.no_grad():
        model.net.eval()
        states = model.encode(oracle["batch/0/im"].double())
        seen = F.normalize(model.net.vision_proj(states[:, 0]), dim=-1)
    assert torch.allclose(seen, oracle["out/final_image_feat_batch0"], rtol=0, atol=1e-9)


def batch(oracle: Oracle, model: Any, index: int) -> Batch:
    """In the recording two samples of one image show pictures of their own (augmentation), so that each is encoded."""
    at = oracle.tensors(f"batch/{index}/")
    texts = oracle.facts["texts"][index]
    ids, mask = model.padded(model.text_ids(texts))
    assert torch.equal(ids, at["text_ids"][:, : ids.shape[1]].long())
    assert int(at["text_mask"].sum()) == int(mask.sum())
    samples = [sample(i, image, text) for i, (image, text) in enumerate(zip(at["idx"].tolist(), texts, strict=True))]
    return Batch(samples, at["im"].double(), torch.arange(len(texts))[:, None])


def test_clip_end_to_end(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, where two implementations' gradients differ in the last bits: 99 % of the gates at least."""
    oracle = Oracle(shared / "oracles" / "upop" / "clip_p50_f32.npz")
    steps = oracle.facts["updates"][-1][0] + 1
    weights = {k: v for k, v in oracle.tensors("init/").items() if not k.endswith("alpha")}
    model = opened(tmp_path, weights)
    model.net.train()
    masks = [k.removeprefix("alpha/0000/") for k in oracle.arrays.files if k.startswith("alpha/0000/")]
    sites = {site_of(key): key for key in masks}
    options = code_options("coco_retrieval", sparsity=0.5, steps=steps, interval=10)
    batches = [clip_batch(oracle.tensors(f"batch/{i}/")) for i in range(steps)]
    monkeypatch.setattr(model, "tokens", lambda texts: torch.tensor([list(map(int, t.split())) for t in texts]))
    loss = Momentum(model, "match", options, [s for b in batches for s in b.samples], epoch=steps, seed=0)
    begun(loss, oracle["init/image_queue"], oracle["init/text_queue"], torch.float32)
    search = code_search(Gates(model.net, model.structure()), model.structure(), options)
    optimiser = torch.optim.AdamW(model.net.parameters(), lr=1e-4, weight_decay=0.2)
    same = total = 0
    for step, one in enumerate(batches):
        loss(one).backward()
        search.after_backward(step)
        optimiser.step()
        optimiser.zero_grad()
        search.after_step(step)
        if search.updates[-1][0] == step:
            for name, gate in search.gates.value.items():
                told = oracle[f"alpha/{step:04d}/{sites[name]}"].flatten()
                same, total = same + int((gate.detach() - told).abs().lt(1e-6).sum()), total + len(told)
    assert [step for step, _ in search.updates] == [step for step, _ in oracle.facts["updates"]]
    assert same / total >= 0.99


def clip_batch(at: dict[str, Tensor]) -> Batch:
    texts = [" ".join(map(str, ids)) for ids in at["ids"].tolist()]
    samples = [sample(i, image, text) for i, (image, text) in enumerate(zip(at["idx"].tolist(), texts, strict=True))]
    return Batch(samples, at["im"], torch.arange(len(texts))[:, None])
