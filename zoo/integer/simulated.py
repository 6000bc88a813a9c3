"""The fake-quantized network of a Program: float arithmetic on the very values that the integers stand for."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from zoo.graph import ops
from zoo.integer.passing import passing
from zoo.integer.program import Node, Program, TensorFormat, assemble, centred_weight, rounding_offsets
from zoo.integer.shapes import shapes, window
from zoo.quant import layers as q
from zoo.quant.quantizer import Quantizer
from zoo.quant.spec import Format
from zoo.resolve import load


def build_simulated(program: Program, semantics: str) -> fx.GraphModule:
    """Return the Q-graph rebuilt from integers: weights ``(q - z) s_w``, biases ``b s_x s_w``.

    The known rounding offset of the semantics is part of the simulation: added to the bias before a ReLU, away from
    zero elsewhere and in pools.
    """
    rounding = load("zoo.integer.semantics", semantics, "semantics")
    found = shapes(program)
    return assemble(program, lambda node: _module(node, program, rounding, found))


def _quantizer(out: TensorFormat) -> Quantizer:
    symmetric = out.zero_point == 0 and (not out.signed or out.qmin < 0)
    quantizer = Quantizer(Format(bits=out.bits, symmetric=symmetric), signed=out.signed)
    quantizer.qmin, quantizer.qmax = out.qmin, out.qmax
    scale, zero = torch.tensor([[out.scale], [out.zero_point]], dtype=torch.float32)
    quantizer.set_qparams(scale, zero)
    return quantizer


@torch.no_grad()
def _module(node: Node, program: Program, rounding: Any, found: dict[str, tuple[int, ...]]) -> nn.Module:
    if (module := passing(node)) is not None:
        return module
    assert node.out is not None
    out, act = _quantizer(node.out), node.attrs.get("act")
    if node.op in ("conv2d", "linear"):
        return _weighted(node, program, out, act, rounding)
    if node.op == "table":
        return q.QTable(node.attrs["function"], out)
    if node.op in ("mean", "avg_pool"):
        attrs = node.attrs
        pool = (
            q.QMean(out) if node.op == "mean" else q.QAvgPool(tuple(attrs["kernel_size"]), tuple(attrs["stride"]), out)
        )
        source = program.format_of(node.inputs[0])
        mean = rounding.mean(source.scale, node.out.scale, window(node, found), node.out.low, node.out.high)
        constant, kink = mean.rounding()
        pool.nudge = ((constant + kink) * node.out.scale).float()
        return pool
    if node.op == "add":
        return q.QAdd(out, act)
    kinds = {"input": q.QInput, "mul": q.QMul, "cat": q.QCat, "requantize": q.QRequantize}
    return kinds[node.op](out)


def _weighted(node: Node, program: Program, out: Quantizer, act: str | None, rounding: Any) -> nn.Module:
    assert node.weight is not None and node.out is not None
    codes = centred_weight(program, node.name)
    scale = program.tensors[f"{node.name}.weight_scale"]
    weight = codes * scale.reshape([-1] + [1] * (codes.dim() - 1))
    source = program.format_of(node.inputs[0])
    constant, kink = rounding_offsets(rounding, source, scale, node.out)
    offset = (constant + (kink if act else 0)) * node.out.scale
    bias = program.tensors[f"{node.name}.bias"].double() * (source.scale * scale.double())
    bias = (bias + offset).float()
    layer: nn.Module
    if node.op == "linear":
        layer = nn.Linear(codes.shape[1], codes.shape[0])
    else:
        groups = int(node.attrs["groups"])
        layer = ops.Conv2d(
            codes.shape[1] * groups, codes.shape[0], (codes.shape[2], codes.shape[3]),
            stride=tuple(node.attrs["stride"]), pad=tuple(node.attrs["pad"]), dilation=tuple(node.attrs["dilation"]),
            groups=groups,
        )  # fmt: skip
    layer.weight, layer.bias = nn.Parameter(weight, requires_grad=False), nn.Parameter(bias, requires_grad=False)
    own, each = node.weight, scale.numel() > 1 or codes.shape[0] == 1
    fmt = Format(
        own.bits, own.symmetric, "per_channel" if each else "per_tensor", narrow=own.narrow, mid_rise=own.mid_rise
    )
    module = (q.QLinear if node.op == "linear" else q.QConv2d)(layer, fmt, out, act)  # type: ignore[arg-type]
    if not act and bool((kink != 0).any()):
        module.nudge = (kink * node.out.scale).float().expand(len(bias)).reshape([1, -1] + [1] * (codes.dim() - 2))
    zero = program.tensors.get(f"{node.name}.weight_zero_point")
    scale = scale * own.step
    module.weight_quantizer.set_qparams(scale, torch.zeros_like(scale) if zero is None else own.gather(zero))
    return module
