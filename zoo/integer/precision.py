"""Whether PyTorch multiplies float32 numbers as they are."""

from __future__ import annotations

import torch

_AS_THEY_ARE = ("none", "ieee")  # nothing was asked for, or just that


def float32_is_kept(device: torch.device) -> bool:
    """Tell whether products of float32 keep their digits on a device.

    A GPU multiplies TF32 in convolutions unless told otherwise, and may take Winograd's algorithm, which is not exact
    on integers. A CPU multiplies bfloat16 or TF32 where ``torch.set_float32_matmul_precision`` or the settings
    ``fp32_precision`` of ``torch.backends`` allow it.
    """
    if device.type != "cpu":
        return False
    try:
        kept = torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # it was set by both of PyTorch's interfaces, and the older one does not tell then
        return False
    cpu = getattr(torch.backends, "mkldnn", None)
    settings = (torch.backends, cpu, getattr(cpu, "matmul", None), getattr(cpu, "conv", None))
    return kept and all(getattr(part, "fp32_precision", "none") in _AS_THEY_ARE for part in settings)
