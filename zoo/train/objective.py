"""What a training minimises: cross-entropy, a teacher's opinion, or both."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.nn import functional as F


@dataclass(frozen=True)
class Objective:
    """``(1 - share) CE + share T^2 KL(teacher || network)`` at temperature T (Hinton et al. 2015, section 2)."""

    label_smoothing: float = 0.0
    share: float = 0.0
    temperature: float = 1.0

    def __call__(self, logits: Tensor, labels: Tensor, target: Tensor | None) -> Tensor:
        """Return the mean loss of float32 logits ``[N, K]``, labels ``[N]`` and the teacher's logits ``[N, K]``."""
        if target is None:
            return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        t = self.temperature
        teaching = F.kl_div(
            F.log_softmax(logits / t, 1), F.log_softmax(target / t, 1), reduction="batchmean", log_target=True
        )
        loss = self.share * t * t * teaching
        if self.share < 1:
            loss = loss + (1 - self.share) * F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        return loss


@torch.no_grad()
def opinion(teacher: fx.GraphModule, x: Tensor, bf16: bool) -> Tensor:
    """Return the teacher's float32 logits on the augmented batch."""
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
        return teacher(x).float()  # type: ignore[no-any-return]
