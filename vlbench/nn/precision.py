"""What fp32 means here."""

from __future__ import annotations

import torch


def plain_float32() -> None:
    """Products of float32 in float32: on a GPU torch lets convolutions round to TF32 (10 bits) unless told otherwise,
    and the patch embedding is one."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
