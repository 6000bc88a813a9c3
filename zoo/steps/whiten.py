"""Start the first convolution of an untrained network on uncorrelated patches of the training images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from zoo.context import Context
from zoo.errors import GraphError
from zoo.graph.fold import clone
from zoo.steps._walk import require_float

_CHUNK = 250  # images whose patches are held at once


@dataclass(frozen=True)
class Whiten:
    """Random directions in the whitened space of patches (Page 2019, "How to Train Your ResNet 8"; Jordan 2024, 3.2).

    With ``C = V diag(l) V'`` the second moments of the patches that the convolution reads in ``images`` images, its
    filters become rows of ``G diag(l + eps)^(-1/2) V'``, where the rows of ``G`` are directions drawn at random. So
    fine and coarse structure enter the network with the same strength from the first step on. ``eps``, in units of the
    normalized pixels' variance, keeps down what is smaller; Jordan, with patches of 2 x 2, has 5e-4. The filters stay
    free to learn, but as they are long, a rate of common size turns them slowly.
    """

    takes: ClassVar = ("float",)

    images: int = 5000
    eps: float = 0.01

    def __post_init__(self) -> None:
        """Refuse an empty estimate and a division by zero."""
        if self.images < 1 or self.eps <= 0:
            raise ValueError("images and eps must be positive")

    @torch.no_grad()
    def __call__(self, net: fx.GraphModule, ctx: Context) -> fx.GraphModule:
        """Return the graph with new filters; GraphError after quantize, or where no such convolution is first."""
        require_float(net, "whiten")
        net = clone(net)
        first = next(iter(next(n for n in net.graph.nodes if n.op == "placeholder").users))
        conv = net.get_submodule(str(first.target)) if first.op == "call_module" else None
        if not isinstance(conv, nn.Conv2d) or conv.groups != 1:
            raise GraphError(f"whiten: what reads the images is {first.target}, no convolution over all their "
                             "channels; leave whiten out")  # fmt: skip
        values, vectors = torch.linalg.eigh(_moments(conv, ctx, self.images))
        whitening = (values.clamp(min=0) + self.eps).rsqrt()[:, None] * vectors.T
        draws = torch.randn(conv.out_channels, len(values), generator=ctx.generator(), dtype=torch.float64)
        filters = F.normalize(draws, dim=1) @ whitening
        conv.weight.copy_(filters.reshape(conv.weight.shape))
        return net


def _moments(conv: nn.Conv2d, ctx: Context, count: int) -> Tensor:
    """Return the second moments ``[P, P]`` (float64) of patches wholly inside the pictures; P = channels * taps."""
    total, seen = torch.zeros(conv.weight[0].numel(), conv.weight[0].numel(), dtype=torch.float64), 0
    for batch in ctx.calibration.batches(_CHUNK, min(count, len(ctx.calibration))):
        if any(d * (k - 1) >= n for d, k, n in zip(conv.dilation, conv.kernel_size, batch.shape[2:], strict=True)):
            raise GraphError("whiten: the images are smaller than the first convolution's kernel; leave whiten out")
        patches = F.unfold(batch, conv.kernel_size, conv.dilation, 0, conv.stride).transpose(1, 2).flatten(0, 1)
        # products of float32 patches are summed chunk by chunk, the chunks in float64
        total += (patches.T @ patches).double()
        seen += len(patches)
    return total / seen
