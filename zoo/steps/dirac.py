"""Start the convolutions behind the first one of an untrained network as identities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx, nn

from zoo.context import Context
from zoo.errors import GraphError
from zoo.graph.fold import clone
from zoo.steps._walk import require_float


@dataclass(frozen=True)
class Dirac:
    """No settings. The first ``C_in`` filters hand on one channel each (Zagoruyko 2017; Jordan 2024, section 3.3).

    It concerns convolutions over all channels that have at least as many filters as input channels, but for the one
    that reads the images; further filters keep their random values.
    """

    takes: ClassVar = ("float",)

    @torch.no_grad()
    def __call__(self, net: fx.GraphModule, ctx: Context) -> fx.GraphModule:
        """Return the graph with new filters; GraphError after quantize, or where there is no such convolution."""
        require_float(net, "dirac")
        net = clone(net)
        readers = {str(user.target) for n in net.graph.nodes if n.op == "placeholder" for user in n.users}
        fitting = [
            m for name, m in net.named_modules()
            if isinstance(m, nn.Conv2d) and m.groups == 1 and m.out_channels >= m.in_channels and name not in readers
        ]  # fmt: skip
        if not fitting:
            raise GraphError("dirac: no convolution behind the first has a filter for each input channel; leave it out")
        for conv in fitting:
            nn.init.dirac_(conv.weight[: conv.in_channels])
        return net
