"""Small random Programs, built node by node, with scales that use most of each range."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from zoo.graph.ops import ACTIVATIONS
from zoo.integer.program import Node, Program, TensorFormat, WeightFormat

Kind = Literal["signed", "unsigned", "int8"]
Pair = tuple[int, int]


def float32(x: float) -> float:
    """Return the nearest float32."""
    return float(torch.tensor(x, dtype=torch.float32))


class Builder:
    """Adds nodes to ``program``; every tensor has ``bits`` and is ``signed`` (zero point 0), or affine.

    ``unsigned`` and ``int8`` are affine, with unsigned codes and with signed ones.
    """

    def __init__(self, shape: tuple[int, int, int], seed: int, bits: int = 8, kind: Kind = "unsigned") -> None:
        """Start with the input tensor ``x`` of ``(C, H, W)``."""
        self.random, self.bits, self.kind = random.Random(seed), bits, kind
        self.generator = torch.Generator().manual_seed(seed)
        self.program = Program([], {}, shape)
        self._node("x", "input", (), {}, self.format(3.0))

    def format(self, top: float, act: str | None = None, bits: int | None = None) -> TensorFormat:
        """Return a format for about ``[-top, top]``, or ``[0, top]`` after an activation."""
        bits = bits or self.bits
        top *= self.random.uniform(0.8, 1.25)
        if act and self.kind != "int8" and bits <= 8:
            return TensorFormat(bits, False, 0, 2**bits - 1, float32(top / (2**bits - 1)), 0)
        signed = self.kind != "unsigned"
        qmin = -(2 ** (bits - 1)) if signed else 0
        qmax = qmin + 2**bits - 1
        scale = float32(2 * top / (2**bits - 1))
        if self.kind == "signed":
            return TensorFormat(bits, True, qmin, qmax, scale, 0)
        if act:
            return TensorFormat(bits, True, qmin, qmax, float32(top / (2**bits - 1)), qmin)
        zero = (qmin + qmax) // 2 + self.random.randint(-(2**bits) // 8, 2**bits // 8)
        return TensorFormat(bits, signed, qmin, qmax, scale, zero)

    def top(self, name: str) -> float:
        """Return the largest magnitude that a tensor holds."""
        fmt = self.program.format_of(name)
        return fmt.reach * fmt.scale

    def _node(
        self, name: str, op: Any, inputs: tuple[str, ...], attrs: dict[str, Any], out: TensorFormat | None,
        weight: WeightFormat | None = None,
    ) -> str:  # fmt: skip
        self.program.nodes.append(Node(name, op, inputs, attrs, out, weight))
        return name

    def _weights(self, name: str, source: str, shape: tuple[int, ...], fmt: WeightFormat, act: str | None) -> float:
        """Store random codes, scales and a bias; return a range for the output, one that passes 6 before a ReLU6."""
        typical_output = 4.0 if act == "relu6" else 2.0
        tensors, x = self.program.tensors, self.program.format_of(source)
        low, high = (-(2 ** (fmt.bits - 1)), 2 ** (fmt.bits - 1) - 1) if fmt.symmetric else (0, 2**fmt.bits - 1)
        codes = torch.randint(low, high + 1, shape, generator=self.generator)
        tensors[f"{name}.weight"] = codes.to(torch.int8 if fmt.symmetric else torch.uint8)
        channels = shape[0] if fmt.per_channel else 1
        scale = torch.exp(0.7 * torch.rand(channels, generator=self.generator))
        tensors[f"{name}.weight_scale"] = scale
        if not fmt.symmetric:
            tensors[f"{name}.weight_zero_point"] = torch.full((channels,), 2 ** (fmt.bits - 1), dtype=torch.int32)
        fan = math.prod(shape[1:])
        typical = math.sqrt(fan) * 0.6 * 2 ** (fmt.bits - 1) * 0.5 * x.reach
        scale *= typical_output / (typical * x.scale * float(scale.mean()))
        bias = torch.randn(shape[0], generator=self.generator) * typical
        tensors[f"{name}.bias"] = bias.to(torch.int32)
        return 2.5 * typical * x.scale * float(scale.mean())

    def conv(
        self, name: str, source: str, channels: Pair, kernel: Pair = (3, 3), *, stride: Pair = (1, 1),
        pad: tuple[int, int, int, int] = (1, 1, 1, 1), groups: int = 1, act: str | None = None, weight_bits: int = 8,
        symmetric: bool = True, out_bits: int | None = None, dilation: Pair = (1, 1),
    ) -> str:  # fmt: skip
        """Add a convolution of ``channels`` (in, out), one weight scale per output channel."""
        fmt = WeightFormat(weight_bits, symmetric, True)
        top = self._weights(name, source, (channels[1], channels[0] // groups, *kernel), fmt, act)
        attrs: dict[str, Any] = {"act": act} if act else {}
        attrs |= {"stride": list(stride), "pad": list(pad), "dilation": list(dilation), "groups": groups}
        return self._node(name, "conv2d", (source,), attrs, self.format(top, act, out_bits), fmt)

    def linear(self, name: str, source: str, features: Pair, *, out_bits: int | None = None) -> str:
        """Add a linear layer of ``features`` (in, out), one weight scale in all."""
        fmt = WeightFormat(8, True, False)
        top = self._weights(name, source, features[::-1], fmt, None)
        return self._node(name, "linear", (source,), {}, self.format(top, bits=out_bits), fmt)

    def add(self, name: str, a: str, b: str, act: str | None = None) -> str:
        """Add a residual addition."""
        top = math.hypot(self.top(a), self.top(b))
        return self._node(name, "add", (a, b), {"act": act} if act else {}, self.format(top, act))

    def mul(self, name: str, a: str, b: str) -> str:
        """Add a product."""
        return self._node(name, "mul", (a, b), {}, self.format(0.6 * self.top(a) * self.top(b)))

    def cat(self, name: str, *sources: str) -> str:
        """Add a concatenation."""
        return self._node(name, "cat", sources, {}, self.format(max(map(self.top, sources))))

    def requantize(self, name: str, source: str, bits: int) -> str:
        """Add a tensor of other bits."""
        return self._node(name, "requantize", (source,), {}, self.format(self.top(source), bits=bits))

    def mean(self, name: str, source: str) -> str:
        """Add a global average."""
        return self._node(name, "mean", (source,), {}, self.format(0.4 * self.top(source)))

    def avg_pool(self, name: str, source: str, kernel: Pair, stride: Pair) -> str:
        """Add a windowed average."""
        attrs = {"kernel_size": list(kernel), "stride": list(stride)}
        return self._node(name, "avg_pool", (source,), attrs, self.format(0.7 * self.top(source)))

    def max_pool(self, name: str, source: str) -> str:
        """Add a 3 x 3 maximum, stride 2, padding 1."""
        attrs = {"kernel_size": [3, 3], "stride": [2, 2], "padding": [1, 1]}
        return self._node(name, "max_pool", (source,), attrs, None)

    def flatten(self, name: str, source: str) -> str:
        """Add a flatten."""
        return self._node(name, "flatten", (source,), {}, None)

    def slice(self, name: str, source: str, start: int, stop: int) -> str:
        """Add some channels of a tensor."""
        return self._node(name, "slice", (source,), {"start": start, "stop": stop}, None)

    def table(self, name: str, source: str, function: str) -> str:
        """Add an activation; its table is worked out here in Python's floats."""
        fmt, gate = self.program.format_of(source), function in ("hardsigmoid", "sigmoid")
        out = self.format(1.0, "gate") if gate else self.format(self.top(source))
        module = ACTIVATIONS[function]()
        entries = []
        for code in range(fmt.qmin, fmt.qmax + 1):
            real = float(module(torch.tensor((code - fmt.zero_point) * fmt.scale, dtype=torch.float64)))
            entries.append(min(max(round(real / out.scale) + out.zero_point, out.qmin), out.qmax))
        self.program.tensors[f"{name}.table"] = torch.tensor(entries, dtype=torch.int32)
        return self._node(name, "table", (source,), {"function": function}, out)

    def image(self, count: int = 2) -> Tensor:
        """Return images ``[count, C, H, W]`` that fill the input range and pass it here and there."""
        noise = torch.rand(count, *self.program.input_shape, generator=self.generator) * 2 - 1
        return noise * self.top("x") * 1.1


def power_of_two_scales(program: Program) -> None:
    """Round every scale to a power of two: then many results lie exactly between two codes."""
    for i, node in enumerate(program.nodes):
        if node.out is not None:
            program.nodes[i] = replace(node, out=replace(node.out, scale=2.0 ** round(math.log2(node.out.scale))))
        if f"{node.name}.weight_scale" in program.tensors:
            scale = program.tensors[f"{node.name}.weight_scale"]
            program.tensors[f"{node.name}.weight_scale"] = torch.exp2(torch.round(torch.log2(scale)))


class Recorder(fx.Interpreter):
    """Runs a graph and keeps every module's output by its name."""

    def __init__(self, net: fx.GraphModule) -> None:
        """Take the network."""
        super().__init__(net)
        self.values: dict[str, Tensor] = {}

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Run one module."""
        result = super().call_module(target, args, kwargs)
        self.values[str(target)] = result.clone()
        return result


def record(net: fx.GraphModule, image: Tensor) -> dict[str, Tensor]:
    """Return the output of every module of a network."""
    recorder = Recorder(net)
    with torch.no_grad():
        recorder.run(image)
    return recorder.values


def module(net: nn.Module, name: str) -> Any:
    """Return a network's module by name, with its own type's attributes."""
    return net.get_submodule(name)
