"""Segmenter (Strudel et al. 2021, arXiv 2105.05633): a ViT whose patches and learned class tokens go through a mask
transformer; a class's mask is the cosine of its token with every patch. Names are those of the original's checkpoints.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from ..structure import Structure
from . import timm as timm_nn
from .stream import with_stream

Size = tuple[int, int]  # height, width


class MaskTransformer(nn.Module):
    """Patches (B, P, encoder_width) -> coarse logits (B, classes, h, w) on the patch grid."""

    def __init__(
        self,
        classes: int,
        encoder_width: int,
        *,
        width: int,
        depth: int,
        heads: int,
        dropout: float = 0.0,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        norm: Any = partial(nn.LayerNorm, eps=norm_eps)
        self.blocks = nn.ModuleList(
            Block(width, heads, qkv_bias=True, proj_drop=dropout, norm_layer=norm) for _ in range(depth)
        )
        self.cls_emb = nn.Parameter(0.02 * torch.randn(1, classes, width))
        self.proj_dec = nn.Linear(encoder_width, width)
        self.proj_patch = nn.Parameter(width**-0.5 * torch.randn(width, width))
        self.proj_classes = nn.Parameter(width**-0.5 * torch.randn(width, width))
        self.decoder_norm = norm(width)
        self.mask_norm = norm(classes)

    def forward(self, patches: Tensor, grid: Size) -> Tensor:
        classes = self.cls_emb.shape[1]
        x = torch.cat([self.proj_dec(patches), self.cls_emb.expand(patches.shape[0], -1, -1)], 1)
        for block in self.blocks:
            x = block(x)
        x = self.decoder_norm(x)  # (B, P + classes, width)
        projected = F.normalize(x[:, :-classes] @ self.proj_patch, dim=-1)  # (B, P, width)
        named = F.normalize(x[:, -classes:] @ self.proj_classes, dim=-1)  # (B, classes, width)
        masks: Tensor = self.mask_norm(projected @ named.transpose(1, 2))  # (B, P, classes)
        return masks.transpose(1, 2).reshape(masks.shape[0], classes, *grid)


class Segmenter(nn.Module):
    """A ViT of timm's and a MaskTransformer. Images may have any size: sides are padded with zeros to whole patches,
    and position embeddings are resized (`pos_embed`: "bilinear" in the original, "bicubic" in mmsegmentation)."""

    def __init__(
        self,
        classes: int,
        encoder: dict[str, Any],
        decoder: dict[str, Any],
        *,
        norm_eps: float = 1e-5,
        pos_embed: str = "bilinear",
    ) -> None:
        super().__init__()
        norm: Any = partial(nn.LayerNorm, eps=norm_eps)
        self.encoder = VisionTransformer(num_classes=0, norm_layer=norm, **encoder)
        width = self.encoder.embed_dim
        self.decoder = MaskTransformer(classes, width, **{"width": width, **decoder})
        self.pos_embed = pos_embed

    @property
    def patch(self) -> int:
        return int(self.encoder.patch_embed.proj.kernel_size[0])

    def grid(self, size: Size) -> Size:
        """Patches down and across an image of `size`."""
        return -(-size[0] // self.patch), -(-size[1] // self.patch)

    def tokens(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 1 + patches, D), normalised; the class token first."""
        encoder = self.encoder
        height, width = images.shape[2:]
        grid = self.grid((height, width))
        images = F.pad(images, (0, grid[1] * self.patch - width, 0, grid[0] * self.patch - height))
        x = encoder.patch_embed.proj(images).flatten(2).transpose(1, 2)
        x = torch.cat([encoder.cls_token.expand(x.shape[0], -1, -1), x], 1) + self._positions(grid)
        x = encoder.pos_drop(x)
        for block in encoder.blocks:
            x = block(x)
        states: Tensor = encoder.norm(x)
        return states

    def _positions(self, grid: Size) -> Tensor:
        """(1, 1 + patches, D) position embeddings for a grid of patches."""
        learned: Tensor = self.encoder.pos_embed
        stored = self.encoder.patch_embed.grid_size
        if grid == tuple(stored):
            return learned
        first, patches = learned[:, :1], learned[:, 1:].transpose(1, 2).unflatten(2, stored)
        resized = F.interpolate(patches, size=grid, mode=self.pos_embed, align_corners=False)  # (1, D, h, w)
        return torch.cat([first, resized.flatten(2).transpose(1, 2)], 1)

    def decode(self, tokens: Tensor, size: Size) -> Tensor:
        """Tokens of images of `size` -> coarse logits (B, classes, h, w)."""
        masks: Tensor = self.decoder(tokens[:, 1:], self.grid(size))
        return masks

    def masks(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> coarse logits (B, classes, h, w)."""
        return self.decode(self.tokens(images), (images.shape[2], images.shape[3]))

    def spread(self, masks: Tensor, size: Size) -> Tensor:
        """Coarse logits -> those of the pixels of an image of `size`."""
        padded = (masks.shape[2] * self.patch, masks.shape[3] * self.patch)
        logits = F.interpolate(masks, size=padded, mode="bilinear", align_corners=False)
        return logits[:, :, : size[0], : size[1]]

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> logits (B, classes, H, W)."""
        return self.spread(self.masks(images), (images.shape[2], images.shape[3]))


def adopt(module: nn.Module) -> nn.Module:
    """Our attention in every block of the encoder and the decoder; parameters and keys stay."""
    return timm_nn.adopt(module)


def structure(module: nn.Module) -> Structure:
    """Encoder, then decoder."""
    decoder = with_stream(
        module, timm_nn.vision_tower(module, "decoder.blocks", "decoder", read_by=None), writes=["decoder.proj_dec"],
        tables=["decoder.cls_emb"], norms=["decoder.decoder_norm"],
        products=["decoder.proj_patch", "decoder.proj_classes"],
    )  # fmt: skip
    return Structure((timm_nn.vision_tower(module, "encoder.blocks", "encoder", read_by=["decoder.proj_dec"]), decoder))
