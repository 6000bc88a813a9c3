"""Give the quantizers of a Q-graph their learners, and take them away again."""

from __future__ import annotations

from typing import Any

from torch import fx

from zoo.native.kernels import Kernels
from zoo.quant.layers import QInput, QNode, QWeighted
from zoo.quant.quantizer import Quantizer, RangeLearner
from zoo.resolve import class_name, load


def learner(name: str) -> Any:
    """Return the class of file ``name`` of ``zoo/quant/learned``."""
    return getattr(load("zoo.quant.learned", name, "train.quantizer"), class_name(name))


def attach(net: fx.GraphModule, name: str, relative: bool, kernels: Kernels | None = None) -> list[RangeLearner]:
    """Give every quantizer of a calibrated Q-graph a learner of file ``name`` and return them.

    ``kernels`` compute in place of PyTorch's operations, on a CPU.

    The image's own quantizer stays as calibrated: its range is known. So does a power-of-two scale, unless the learner
    takes any scale.
    """
    kind = learner(name)
    learners: list[RangeLearner] = []
    for node in net.modules():
        if not isinstance(node, QNode) or isinstance(node, QInput):
            continue
        pairs: list[tuple[Quantizer, bool]] = [(node.out, False)]
        if isinstance(node, QWeighted):
            pairs.append((node.weight_quantizer, True))
        for quantizer, weight in pairs:
            if quantizer.fmt.scale == "float" or kind.any_scale:
                quantizer.learner = kind.make(quantizer, weight=weight, relative=relative)
                quantizer.learner.kernels = kernels
                learners.append(quantizer.learner)
    return learners


def settle(net: fx.GraphModule) -> None:
    """Write what was learned into the quantizers; the graph is a calibrated Q-graph again."""
    for module in net.modules():
        if isinstance(module, QWeighted) and module.weight_quantizer.learner is not None:
            # the last step, or an average, has moved the weight since the forward pass
            module.weight_quantizer.learner.measure(module.latent().detach(), module.weight_quantizer)
    for module in net.modules():
        if isinstance(module, Quantizer) and module.learner is not None:
            module.learner.settle(module)
            module.learner = None
