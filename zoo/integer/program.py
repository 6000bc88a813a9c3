"""The truth about a quantized network: a list of nodes with integer formats, and their integer tensors.

Everything else is made from a Program: the integer network, the fake-quantized network, the checkpoint, exports.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from zoo.errors import GraphError, QuantError
from zoo.graph import ops
from zoo.quant import layers as q
from zoo.quant.quantizer import Quantizer

Op = Literal["input", "conv2d", "linear", "add", "mul", "cat", "mean", "avg_pool", "max_pool", "flatten", "slice",
             "table", "requantize"]  # fmt: skip
BIAS_LIMIT = 2.0**29


@dataclass(frozen=True)
class TensorFormat:
    """A tensor's codes: ``real = (q - zero_point) * scale``, ``q`` in ``[qmin, qmax]``; scale is a float32."""

    bits: int
    signed: bool
    qmin: int
    qmax: int
    scale: float
    zero_point: int

    @property
    def low(self) -> int:
        """Return the smallest centred code."""
        return self.qmin - self.zero_point

    @property
    def high(self) -> int:
        """Return the largest centred code."""
        return self.qmax - self.zero_point

    @property
    def reach(self) -> int:
        """Return the largest magnitude of a centred code."""
        return max(abs(self.low), abs(self.high))

    @property
    def wide(self) -> bool | None:
        """Return what ``requantize`` takes for sums over this tensor: more than 8 bits ask for int64 accumulators."""
        return True if self.bits > 8 else None


@dataclass(frozen=True)
class WeightFormat:
    """A weight's codes, one scale per output channel or one in all.

    The integers that are multiplied are ``q 2^shift``, or ``(2q + 1) 2^shift`` with ``mid_rise`` levels, of a code q
    of ``bits`` bits. The scale is that of these integers.
    """

    bits: int
    symmetric: bool
    per_channel: bool
    narrow: bool = False
    mid_rise: bool = False
    shift: int = 0

    @property
    def largest_shift(self) -> int:
        """Return the shift with which the integers, less their zero point, still fit a signed byte."""
        return max(0, 8 - self.bits - int(self.mid_rise or not self.symmetric))

    @property
    def step(self) -> float:
        """Return how many integers lie between two codes: a power of two."""
        return 2.0 ** (self.shift + int(self.mid_rise))

    def spread(self, codes: Tensor) -> Tensor:
        """Return the integers of codes."""
        return (2 * codes + 1 if self.mid_rise else codes) * (1 << self.shift)

    def gather(self, integers: Tensor) -> Tensor:
        """Return the codes of integers, int64."""
        codes = integers.to(torch.int64) >> self.shift
        return codes >> 1 if self.mid_rise else codes


@dataclass(frozen=True)
class Node:
    """One operation. ``out`` is None for max_pool, flatten and slice, which keep their input's format."""

    name: str
    op: Op
    inputs: tuple[str, ...]
    attrs: dict[str, Any] = field(default_factory=dict)
    out: TensorFormat | None = None
    weight: WeightFormat | None = None


@dataclass
class Program:
    """Nodes in execution order (the last one gives the logits) and tensors.

    ``tensors`` of a weighted node ``m``: ``m.weight`` int8 or uint8 integers in the layer's own shape,
    ``m.weight_scale`` float32 ``[out]`` or ``[1]``, ``m.weight_zero_point`` int32 where affine, ``m.bias`` int32
    ``[out]``; of a table node: ``m.table`` int32 ``[qmax - qmin + 1]`` codes. ``input_shape`` is ``(C, H, W)``.
    """

    nodes: list[Node]
    tensors: dict[str, Tensor]
    input_shape: tuple[int, int, int]

    def format_of(self, name: str) -> TensorFormat:
        """Return the format of a node's output tensor."""
        node = self.node(name)
        while node.out is None:
            node = self.node(node.inputs[0])
        return node.out

    def node(self, name: str) -> Node:
        """Return the node of this name."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise GraphError(f"{name}: no such node")


def extract(net: fx.GraphModule, input_shape: tuple[int, int, int], semantics: Any, fine_bias: bool = False) -> Program:
    """Return the Program of a calibrated Q-graph.

    A bias is a whole number of accumulator steps ``s_x s_w``, which are coarse where codes are few. With ``fine_bias``
    weights are shifted to the top of a byte, so that the steps of few bits are as fine as those of eight.

    Weight scales are floored where ``|bias| / (s_x s_w)`` would pass 2^29: a dead channel keeps its constant output
    without overflowing the int32 bias. The bias absorbs the constant part of the semantics' rounding offset, so that
    the integers have no systematic error. Raises QuantError, naming the layer, for an uncalibrated quantizer.
    """
    program = Program([], {}, input_shape)
    modules = dict(net.named_modules())
    names: dict[fx.Node, str] = {}
    for node in net.graph.nodes:
        if node.op != "call_module":
            continue
        module, name = modules[str(node.target)], str(node.target)
        inputs = tuple(names[a] for a in node.args if isinstance(a, fx.Node) and a in names)
        names[node] = name
        program.nodes.append(_node(module, name, inputs, program, semantics, fine_bias))
    return program


def tensor_format(quantizer: Quantizer, name: str) -> TensorFormat:
    """Return the frozen format of an activation quantizer."""
    if not bool(quantizer.ready):
        raise QuantError(f"{name}: its output was never calibrated; put the step calibrate before integerize")
    return TensorFormat(
        quantizer.fmt.bits, quantizer.signed, quantizer.qmin, quantizer.qmax, float(quantizer.scale.detach()),
        int(quantizer.zero_point),
    )  # fmt: skip


def _node(
    module: nn.Module, name: str, inputs: tuple[str, ...], program: Program, semantics: Any, fine_bias: bool
) -> Node:
    if isinstance(module, nn.Flatten):
        return Node(name, "flatten", inputs)
    if isinstance(module, ops.Slice):
        return Node(name, "slice", inputs, {"start": module.start, "stop": module.stop})
    if isinstance(module, nn.MaxPool2d):
        window = {key: list(_pair(getattr(module, key))) for key in ("kernel_size", "stride", "padding")}
        return Node(name, "max_pool", inputs, window)
    if not isinstance(module, q.QNode):
        raise GraphError(f"{name}: {type(module).__name__} is still float; put the step quantize before integerize")
    out = tensor_format(module.out, name)
    attrs: dict[str, Any] = {"act": module.act} if module.act else {}
    if isinstance(module, q.QWeighted):
        fmt = module.weight_quantizer.fmt
        weight = WeightFormat(fmt.bits, fmt.symmetric, module.weight_quantizer.axis == 0, fmt.narrow, fmt.mid_rise)
        if fine_bias:
            weight = replace(weight, shift=weight.largest_shift)
        _weights(module, name, weight, program.format_of(inputs[0]), out, program.tensors, semantics)
        if isinstance(module, q.QConv2d):
            attrs |= {
                "stride": list(_pair(module.stride)), "pad": list(module.pad), "dilation": list(_pair(module.dilation)),
                "groups": module.groups,
            }  # fmt: skip
        return Node(name, "conv2d" if isinstance(module, q.QConv2d) else "linear", inputs, attrs, out, weight)
    if isinstance(module, q.QTable):
        _table(module, name, program.format_of(inputs[0]), program.tensors)
        return Node(name, "table", inputs, attrs | {"function": module.function}, out)
    if isinstance(module, q.QAvgPool):
        attrs |= {"kernel_size": list(_pair(module.kernel)), "stride": list(_pair(module.stride))}
        return Node(name, "avg_pool", inputs, attrs, out)
    kinds: dict[type[nn.Module], Op] = {
        q.QInput: "input", q.QAdd: "add", q.QMul: "mul", q.QCat: "cat", q.QMean: "mean", q.QRequantize: "requantize",
    }  # fmt: skip
    return Node(name, kinds[type(module)], inputs, attrs, out)


def _pair(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))


@torch.no_grad()
def _weights(
    module: q.QWeighted, name: str, fmt: WeightFormat, source: TensorFormat, out: TensorFormat,
    tensors: dict[str, Tensor], semantics: Any,
) -> None:  # fmt: skip
    quantizer = module.weight_quantizer
    if not bool(quantizer.ready):
        raise QuantError(f"{name}: its weight was never calibrated; put the step calibrate before integerize")
    scale = quantizer.scale.detach() / fmt.step
    constant, _ = rounding_offsets(semantics, source, scale, out)
    floor = (module.bias.double() - constant * out.scale).abs() / (source.scale * BIAS_LIMIT)
    if scale.numel() == 1:
        floor = floor.max().reshape(1)
    too_small = scale.double() < floor
    if bool(too_small.any()):
        floor = floor * (1 + 1e-6)
        if quantizer.fmt.scale == "pow2":  # kernels for such formats shift, and can do nothing else
            floor = torch.exp2(torch.ceil(torch.log2(floor)))
        scale = torch.where(too_small, floor.float(), scale)
        quantizer.scale.copy_(scale * fmt.step)
    weight = module.weight
    codes = fmt.spread(quantizer.codes(weight))
    tensors[f"{name}.weight"] = codes.to(torch.int8 if quantizer.signed else torch.uint8).contiguous()
    tensors[f"{name}.weight_scale"] = scale
    if not fmt.symmetric:
        tensors[f"{name}.weight_zero_point"] = fmt.spread(quantizer.zero_point.to(torch.int32))
    step = source.scale * scale.double()
    constant, kink = rounding_offsets(semantics, source, scale, out)
    offset = (constant + (kink if module.act else 0)) * out.scale
    bias = torch.round((module.bias.double() - offset) / step)
    if bool((bias.abs() >= 2**31).any()):
        raise QuantError(f"{name}: the bias does not fit int32; its weight or input scale is too small")
    tensors[f"{name}.bias"] = bias.to(torch.int32)


def rounding_offsets(semantics: Any, source: TensorFormat, scale_w: Tensor, out: TensorFormat) -> tuple[Tensor, Tensor]:
    """Return the semantics' rounding offset of a layer in output steps: constant, and away from zero; float64."""
    module = semantics.requantize(source.scale, scale_w, out.scale, low=out.low, high=out.high, wide=source.wide)
    constant, kink = module.rounding()
    return constant, kink


@torch.no_grad()
def _table(module: q.QTable, name: str, source: TensorFormat, tensors: dict[str, Tensor]) -> None:
    codes = torch.arange(source.qmin, source.qmax + 1, dtype=torch.float64)
    if len(codes) > 256:
        raise QuantError(f"{name}: a table activation needs an input of at most 8 bits, got {source.bits}")
    real = module.module.double()((codes - source.zero_point) * source.scale)
    module.module.float()
    quantizer = module.out
    scale, zero = float(quantizer.scale.detach()), float(quantizer.zero_point)
    tensors[f"{name}.table"] = (torch.round(real / scale) + zero).clamp(quantizer.qmin, quantizer.qmax).to(torch.int32)


def centred_weight(program: Program, name: str) -> Tensor:
    """Return a layer's weight codes minus their zero point, as float32 integers."""
    codes = program.tensors[f"{name}.weight"].to(torch.float32)
    zero = program.tensors.get(f"{name}.weight_zero_point")
    if zero is None:
        return codes
    return codes - zero.to(torch.float32).reshape([-1] + [1] * (codes.dim() - 1))


def assemble(program: Program, make: Any) -> fx.GraphModule:
    """Return a GraphModule of one module per node, ``make(node)`` giving each."""
    graph, values, kept = fx.Graph(), dict[str, fx.Node](), dict[str, nn.Module]()
    image = graph.placeholder("image")
    for node in program.nodes:
        kept[node.name] = make(node)
        sources = tuple(values[i] for i in node.inputs) or (image,)
        values[node.name] = graph.call_module(node.name, sources)
    result = values[program.nodes[-1].name]
    for name, module in make.final().items() if hasattr(make, "final") else ():
        while any(k.partition(".")[0] == name for k in kept):  # a network may have a layer of that name
            name += "_"
        kept[name] = module
        result = graph.call_module(name, (result,))
    graph.output(result)
    net = fx.GraphModule(kept, graph)
    return net.eval()
