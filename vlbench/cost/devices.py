"""Devices that a plan can be made for, without having one."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UserError

HERE = "cpu"


@dataclass(frozen=True)
class Device:
    """What its vendor's data sheet says. memory: bytes. fp32, bf16: floating-point operations a second, dense; fp32
    without TF32, which torch leaves off, and bf16 with sums in fp32."""

    product: str
    memory: int
    fp32: float
    bf16: float
    source: str


DEVICES = {
    "h200": Device("NVIDIA H200 SXM", 141 * 10**9, 67e12, 989e12, "its data sheet, half of the sparse rate"),
    "a100": Device("NVIDIA A100 80GB SXM", 80 * 10**9, 19.5e12, 312e12, "its data sheet"),
    "4090": Device("NVIDIA GeForce RTX 4090", 24 * 10**9, 82.6e12, 165.2e12, "NVIDIA Ada architecture, appendix A"),
}


def refuse_unknown(name: str) -> None:
    """Raise UserError for a device that no plan can be made for."""
    if name != HERE and name not in DEVICES:
        raise UserError(f"--on {name} is not known: no plan is made for it. Known are {', '.join((*DEVICES, HERE))}.")
