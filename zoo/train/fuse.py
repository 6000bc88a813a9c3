"""What else than ranges compiled kernels compute: convolutions, and a float network's BatchNorm with its clamp."""

from __future__ import annotations

import math

import torch
from torch import Tensor, fx, nn
from torch.autograd.function import once_differentiable

from zoo.graph.ops import Conv2d
from zoo.native.kernels import FLOAT, Kernels
from zoo.quant import ops
from zoo.quant.layers import QConv2d
from zoo.quant.learned._normed import fits

_ENDS: dict[type[nn.Module], tuple[float, float]] = {nn.ReLU: (0.0, math.inf), nn.ReLU6: (0.0, 6.0)}


class _NormedClamp(torch.autograd.Function):
    """``clamp(BatchNorm(u), low, high)`` in training; only ``u`` is kept for the backward pass."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, kernels: Kernels, u: Tensor, gamma: Tensor, beta: Tensor,
        running: tuple[Tensor, Tensor], momentum: float, eps: float, low: float, high: float,
    ) -> Tensor:  # fmt: skip
        y, mean, deviation = kernels.normed_forward(u, gamma, beta, running, momentum, eps, 1.0, low, high, FLOAT)
        ctx.save_for_backward(u, gamma, beta, mean, deviation)
        ctx.rest = (kernels, low, high)  # type: ignore[attr-defined]
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        u, gamma, beta, mean, deviation = ctx.saved_tensors
        kernels, low, high = ctx.rest
        *grads, _, _ = kernels.normed_backward(
            u, ops.laid_like(grad, u), gamma, beta, mean, deviation, 1.0, low, high, FLOAT
        )
        return None, *grads, None, None, None, None, None


class FusedNorm(nn.BatchNorm2d):
    """A BatchNorm with the activation behind it; its tensors are those of the BatchNorm that it stands for."""

    def __init__(self, norm: nn.BatchNorm2d, act: nn.Module | None, kernels: Kernels) -> None:
        """Take over settings, parameters and statistics."""
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self._parameters, self._buffers = norm._parameters, norm._buffers
        self.train(norm.training)
        # not registered: the activation keeps its place in the graph, as an identity
        self.rest = (act, kernels)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``act(BatchNorm(x))``."""
        act, kernels = self.rest
        if not torch.is_grad_enabled() or not fits(x, self) or not kernels.suit(x, self.weight, self.bias):
            plain = super().forward(x)
            return plain if act is None else act(plain)
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        ends = (-math.inf, math.inf) if act is None else _ENDS[type(act)]
        y: Tensor = _NormedClamp.apply(
            kernels, x, self.weight, self.bias, (self.running_mean, self.running_var), self.momentum, self.eps, *ends
        )
        return y


def lend(net: fx.GraphModule, kernels: Kernels | None) -> None:
    """Give every convolution of a float graph or a Q-graph the kernels, or take them away."""
    for module in net.modules():
        if isinstance(module, Conv2d | QConv2d):
            module.kernels = kernels


def fuse(net: fx.GraphModule, kernels: Kernels) -> dict[str, nn.Module]:
    """Replace every BatchNorm2d, and the ReLU or ReLU6 that alone reads it; return what ``restore`` puts back.

    The same parameters and buffers stay registered under the same names. Every call of a traced graph has a module of
    its own.
    """
    replaced: dict[str, nn.Module] = {}
    for node in net.graph.nodes:
        norm = _module(net, node)
        if type(norm) is not nn.BatchNorm2d:
            continue
        reader = next(iter(node.users))
        act = _module(net, reader) if len(node.users) == 1 else None
        act = act if type(act) in _ENDS else None
        replaced[node.target] = norm
        net.set_submodule(node.target, FusedNorm(norm, act, kernels))
        if act is not None:
            replaced[reader.target] = act
            net.set_submodule(reader.target, nn.Identity())
    return replaced


def restore(net: fx.GraphModule, replaced: dict[str, nn.Module]) -> None:
    """Put back the modules that ``fuse`` replaced, with what was learned."""
    for name, module in replaced.items():
        module.train(net.get_submodule(name).training)
        net.set_submodule(name, module)


def _module(net: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return net.get_submodule(str(node.target)) if node.op == "call_module" else None
