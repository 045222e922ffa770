"""Segmenter (Strudel et al. 2021, arXiv 2105.05633), which timm does not have: its ViT, and a mask transformer of its
blocks. Images are of one window, with sides of whole patches."""

from functools import partial
from typing import Any

import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import normalize


class MaskTransformer(nn.Module):
    """Patches (B, P, encoder's width) -> logits (B, classes, P): the cosine of each patch with each class's token."""

    def __init__(self, classes: int, inputs: int, norm: Any, *, depth: int, heads: int, width: int = 0) -> None:
        super().__init__()
        width = width or inputs
        self.blocks = nn.Sequential(*(Block(width, heads, qkv_bias=True, norm_layer=norm) for _ in range(depth)))
        self.cls_emb = nn.Parameter(torch.zeros(1, classes, width))
        self.proj_dec = nn.Linear(inputs, width)
        self.proj_patch, self.proj_classes = (nn.Parameter(torch.zeros(width, width)) for _ in range(2))
        self.decoder_norm, self.mask_norm = norm(width), norm(classes)

    def forward(self, patches: Tensor) -> Tensor:
        tokens = torch.cat([self.proj_dec(patches), self.cls_emb.expand(len(patches), -1, -1)], 1)
        seen, named = self.decoder_norm(self.blocks(tokens)).split([patches.shape[1], self.cls_emb.shape[1]], 1)
        cosine = normalize(seen @ self.proj_patch, dim=-1) @ normalize(named @ self.proj_classes, dim=-1).mT
        masks: Tensor = self.mask_norm(cosine).mT
        return masks


class Segmenter(nn.Module):
    """Images (B, 3, S, S) -> logits (B, classes, S / patch, S / patch)."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        norm: Any = partial(nn.LayerNorm, eps=config.get("norm_eps", 1e-5))
        self.encoder = VisionTransformer(num_classes=0, norm_layer=norm, **config["encoder"])
        decoder = {k: v for k, v in config["decoder"].items() if k != "dropout"}
        self.decoder = MaskTransformer(config["classes"], self.encoder.embed_dim, norm, **decoder)

    def forward(self, images: Tensor) -> Tensor:
        masks = self.decoder(self.encoder.forward_features(images)[:, 1:])
        logits: Tensor = masks.unflatten(2, self.encoder.patch_embed.grid_size)
        return logits
