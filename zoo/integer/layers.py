"""Integer layers. Between them flow centred codes ``q - z``: exact integers held in float32 (docs/design.md)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from zoo.errors import QuantError
from zoo.integer.kept import Kept
from zoo.integer.passing import passing
from zoo.integer.precision import float32_is_kept
from zoo.integer.program import Node, Program, TensorFormat, assemble, centred_weight
from zoo.integer.shapes import shapes, window
from zoo.resolve import load

EXACT32, INT32, INT48 = 2.0**24, 2.0**31, 2.0**47


class IntInput(nn.Module):
    """The only float operation before the logits: the image becomes centred codes."""

    def __init__(self, out: TensorFormat) -> None:
        """Take the input tensor's format."""
        super().__init__()
        self.inverse, self.low, self.high = 1.0 / torch.tensor(out.scale, dtype=torch.float32), out.low, out.high

    def forward(self, x: Tensor) -> Tensor:
        """Return codes of ``[N, C, H, W]``; they have no gradient."""
        return torch.round(x.detach().to(torch.float32) * self.inverse).clamp_(self.low, self.high)


class IntLayer(Kept):
    """Convolution or linear layer: exact accumulation, int32 bias, requantization."""

    def __init__(self, node: Node, program: Program, semantics: Any) -> None:
        """Check that no partial sum can leave the exact range of the float type that carries it."""
        super().__init__()
        assert node.out is not None
        source = program.format_of(node.inputs[0])
        weight = centred_weight(program, node.name)
        bias = program.tensors[f"{node.name}.bias"].double()
        rows = weight.flatten(1).abs().sum(1).double() * source.reach
        self.bound = float((rows + bias.abs()).max())
        if self.bound >= (INT48 if source.wide else INT32):
            raise QuantError(
                f"{node.name}: an accumulator may reach {self.bound:.3g}, beyond "
                f"{'the int48 of 16-bit inputs' if source.wide else 'int32'}; use fewer bits"
            )
        dtype = torch.float32 if float(rows.max()) < EXACT32 else torch.float64
        layout = torch.channels_last if weight.dim() == 4 else torch.contiguous_format
        self.register_buffer("weight", weight.to(dtype).contiguous(memory_format=layout), persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        # an int32 bias can need more digits than the products: then it is added in float64 after the convolution
        self.joint = dtype == torch.float64 or self.bound < EXACT32
        self.register_buffer("joint_bias", bias.to(dtype), persistent=False)
        low, high = limits(node, node.out)
        self.requantize = semantics.requantize(
            source.scale, program.tensors[f"{node.name}.weight_scale"], node.out.scale, low=low, high=high,
            wide=source.wide,
        )  # fmt: skip

    weight: Tensor
    bias: Tensor
    joint_bias: Tensor

    def holds(self, node: Node, program: Program) -> bool:
        """Tell whether its weight and bias are still those of the program."""
        weight, bias = centred_weight(program, node.name), program.tensors[f"{node.name}.bias"].double()
        return torch.equal(self.weight.cpu().float(), weight) and all(
            torch.equal(held.cpu().double(), bias) for held in (self.bias, self.joint_bias.to(self.bias))
        )

    def multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the exact sums of products, plus ``bias``."""
        return F.linear(x, weight, bias)

    def accumulate(self, x: Tensor) -> Tensor:
        """Return the exact accumulator including the bias, float32 where it fits and is kept, float64 elsewhere."""
        dtype = self.weight.dtype if float32_is_kept(x.device) else torch.float64
        x, weight = x.to(dtype), self.weight.to(dtype)
        # under the caller's autocast the sums would be those of bfloat16
        with torch.autocast(x.device.type, enabled=False):
            if self.joint:
                return self.multiply(x, weight, self.joint_bias.to(dtype))
            acc = self.multiply(x, weight, None).double()
        return acc.add_(self.bias.reshape([1, -1] + [1] * (acc.dim() - 2)))

    def forward(self, x: Tensor) -> Tensor:
        """Return centred codes."""
        return self.requantize(self.accumulate(x))  # type: ignore[no-any-return]


class IntConv2d(IntLayer):
    """Convolution with static padding; zero padding is the centred code 0."""

    def __init__(self, node: Node, program: Program, semantics: Any) -> None:
        """Take over the geometry."""
        super().__init__(node, program, semantics)
        left, right, top, bottom = node.attrs["pad"]
        even = left == right and top == bottom
        self.padding: tuple[int, int] = (top, left) if even else (0, 0)
        self.extra: tuple[int, int, int, int] | None = None if even else (left, right, top, bottom)
        self.stride, self.dilation = tuple(node.attrs["stride"]), tuple(node.attrs["dilation"])
        self.groups = int(node.attrs["groups"])

    def multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the exact sums of products, plus ``bias``."""
        if self.extra is not None:
            x = F.pad(x, self.extra)
        # NNPACK's Winograd kernels are not exact on integers
        with torch.backends.nnpack.flags(enabled=False):
            return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)


class IntAdd(Kept):
    """Residual addition."""

    def __init__(self, node: Node, program: Program, semantics: Any) -> None:
        """Form the rescaling of both inputs."""
        super().__init__()
        assert node.out is not None
        a, b = (program.format_of(i) for i in node.inputs)
        low, high = limits(node, node.out)
        self.add = semantics.add(
            a.scale, a.zero_point, b.scale, b.zero_point, node.out.scale, node.out.zero_point, low, high,
            reach=max(a.reach, b.reach),
        )  # fmt: skip

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return centred codes of the sum."""
        return self.add(a, b)  # type: ignore[no-any-return]


class IntMul(Kept):
    """Product with broadcasting: an integer product, requantized."""

    def __init__(self, node: Node, program: Program, semantics: Any) -> None:
        """Form the multiplier ``s_a s_b / s_y``."""
        super().__init__()
        assert node.out is not None
        a, b = (program.format_of(i) for i in node.inputs)
        product = a.reach * b.reach
        self.wide = product >= EXACT32
        low, high = limits(node, node.out)
        # TFLite's MUL rescales int32 products also where its convolutions of 16-bit codes sum in int64
        self.requantize = semantics.requantize(
            a.scale, torch.tensor([b.scale], dtype=torch.float32), node.out.scale, low=low, high=high,
            wide=product >= INT32,
        )  # fmt: skip

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return centred codes of the product."""
        return self.requantize(a.double() * b if self.wide else a * b)  # type: ignore[no-any-return]


def _onto(out: TensorFormat, source: TensorFormat, semantics: Any) -> Any:
    """Return the rescaling of a tensor's codes onto another scale."""
    one = torch.ones(1, dtype=torch.float32)
    return semantics.requantize(source.scale, one, out.scale, low=out.low, high=out.high, wide=False)


class IntCat(Kept):
    """Concatenation: each input requantized onto the common scale."""

    def __init__(self, node: Node, program: Program, semantics: Any) -> None:
        """Form one multiplier per input."""
        super().__init__()
        assert node.out is not None
        self.parts = nn.ModuleList(_onto(node.out, program.format_of(i), semantics) for i in node.inputs)

    def forward(self, *tensors: Tensor) -> Tensor:
        """Return the joined codes."""
        return torch.cat([part(t) for part, t in zip(self.parts, tensors, strict=True)], 1)


class IntRequantize(Kept):
    """A tensor onto another scale; what the rounding loses on average is added before it, as a layer's bias does."""

    def __init__(self, node: Node, program: Program, semantics: Any) -> None:
        """Form the multiplier ``s_a / s_y`` and the offset in codes of the input."""
        super().__init__()
        assert node.out is not None
        source = program.format_of(node.inputs[0])
        self.part = _onto(node.out, source, semantics)
        constant, _ = self.part.rounding()
        self.offset = round(-float(constant) * node.out.scale / source.scale)
        if source.reach + abs(self.offset) >= EXACT32:
            raise QuantError(f"{node.name}: its scale is {node.out.scale / source.scale:.3g} times that of its input, "
                             "whose codes and half a step of it have no exact sum; use nearer scales")  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Return centred codes."""
        return self.part(x + self.offset if self.offset else x)  # type: ignore[no-any-return]


class IntMean(Kept):
    """Global or windowed average: an exact sum, then one rescaling with 1/n in the multiplier."""

    def __init__(self, node: Node, program: Program, semantics: Any, count: int) -> None:
        """Take the number of averaged elements."""
        super().__init__()
        assert node.out is not None
        source = program.format_of(node.inputs[0])
        if count * source.reach >= EXACT32:
            raise QuantError(f"{node.name}: the sum over {count} elements is not exact in float32")
        low, high = limits(node, node.out)
        self.mean = semantics.mean(source.scale, node.out.scale, count, low, high)
        self.count = count
        self.window = (tuple(node.attrs["kernel_size"]), tuple(node.attrs["stride"])) if node.op == "avg_pool" else None

    def forward(self, x: Tensor) -> Tensor:
        """Return centred codes of the average."""
        if self.window is not None:
            return self.mean(F.avg_pool2d(x, *self.window, divisor_override=1))  # type: ignore[no-any-return]
        if x.shape[2] * x.shape[3] != self.count:
            raise QuantError(f"the checkpoint averages {self.count} positions, this image gives {list(x.shape[2:])}")
        return self.mean(x.sum((2, 3), keepdim=True))  # type: ignore[no-any-return]


class IntTable(Kept):
    """An activation as a table of at most 256 codes."""

    def __init__(self, node: Node, program: Program) -> None:
        """Take the stored table."""
        super().__init__()
        assert node.out is not None
        source = program.format_of(node.inputs[0])
        self.offset = -source.low
        table = program.tensors[f"{node.name}.table"].to(torch.float32) - node.out.zero_point
        self.register_buffer("table", table, persistent=False)

    table: Tensor

    def holds(self, node: Node, program: Program) -> bool:
        """Tell whether its table is still that of the program."""
        assert node.out is not None
        return torch.equal(self.table.cpu() + node.out.zero_point, program.tensors[f"{node.name}.table"].float())

    def forward(self, x: Tensor) -> Tensor:
        """Return centred codes."""
        index = (x + self.offset).to(torch.int32)
        if index.dim() == 4:
            index = index.permute(0, 2, 3, 1)
            return torch.take(self.table, index.long()).permute(0, 3, 1, 2)
        return torch.take(self.table, index.long())


class Dequantize(nn.Module):
    """Centred logit codes to real values, one common factor."""

    def __init__(self, out: TensorFormat) -> None:
        """Take the logits' format."""
        super().__init__()
        self.scale = out.scale

    def forward(self, x: Tensor) -> Tensor:
        """Return float logits."""
        return x * self.scale


def limits(node: Node, out: TensorFormat) -> tuple[int, int]:
    """Return the clamp of centred codes: the format's own, a fused ReLU's zero, a fused ReLU6's six."""
    low, high = out.low, out.high
    if node.attrs.get("act"):
        low = max(low, 0)
    if node.attrs.get("act") == "relu6":
        six, scale = torch.tensor([6.0, out.scale], dtype=torch.float32)
        high = min(high, round(float(six * (1.0 / scale))))
    return low, high


class _Maker:
    def __init__(self, program: Program, semantics: str) -> None:
        self.program = program
        self.semantics = load("zoo.integer.semantics", semantics, "integerize.semantics")
        self.shapes = shapes(program)

    def __call__(self, node: Node) -> nn.Module:
        program, semantics = self.program, self.semantics
        if (module := passing(node)) is not None:
            return module
        if node.op == "input":
            assert node.out is not None
            return IntInput(node.out)
        if node.op in ("mean", "avg_pool"):
            return IntMean(node, program, semantics, window(node, self.shapes))
        if node.op == "table":
            return IntTable(node, program)
        kinds = {"conv2d": IntConv2d, "linear": IntLayer, "add": IntAdd, "mul": IntMul, "cat": IntCat,
                 "requantize": IntRequantize}  # fmt: skip
        return kinds[node.op](node, program, semantics)

    def final(self) -> dict[str, nn.Module]:
        return {"dequantize": Dequantize(self.program.format_of(self.program.nodes[-1].name))}


def build_integer(program: Program, semantics: str) -> fx.GraphModule:
    """Return the network that computes on integers only, between the quantized image and the logits.

    Input ``[N, C, H, W]`` float, output ``[N, classes]`` float logits (codes times one scale). Raises QuantError
    where an accumulator cannot be exact, RecipeError for unknown semantics.
    """
    return assemble(program, _Maker(program, semantics))
