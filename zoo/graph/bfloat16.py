"""Sums of products under bfloat16 autocast on a CPU, as fast on processors that do not multiply bfloat16.

Those that do multiply two numbers of 8 significant bits, add the products in float32 and round the sum once. A product
of two such numbers is exact in float32, so the same operands multiplied in float32 give the same sums but for the order
of additions. oneDNN instead imitates the instructions where they are missing, and takes many times as long.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def multiplied() -> bool:
    """Tell whether oneDNN has bfloat16 convolutions for this processor: AVX-512, AMX, or Arm's BF16."""
    has_onednn = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    return has_onednn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


MULTIPLIED = multiplied()


def asked(x: Tensor) -> bool:
    """Tell whether the caller's autocast asks for bfloat16, on the CPU."""
    on = x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    return on and torch.get_autocast_dtype("cpu") == torch.bfloat16


def product(multiply: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``multiply(x, weight, bias)``, where bfloat16 is asked for and not multiplied by sums in float32."""
    if MULTIPLIED or not asked(x):
        return multiply(x, weight, bias)
    # the gradients are rounded on their way back through this, too
    return summed_in_float32(multiply, *(None if t is None else t.to(torch.bfloat16) for t in (x, weight, bias)))


def summed_in_float32(multiply: Callable[..., Tensor], *operands: Tensor | None) -> Tensor:
    """Return what ``multiply`` makes of the operands in float32, rounded to bfloat16."""
    with torch.autocast("cpu", enabled=False):
        return multiply(*(None if t is None else t.float() for t in operands)).to(torch.bfloat16)
