"""Trace a float network with torch.fx and rewrite it into the closed vocabulary (house rule: refuse, never guess)."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F

from zoo.errors import GraphError
from zoo.graph import ops

# timm classes whose forward depends on shapes or dissolves batch normalisation into raw tensors
_LEAVES = ("Linear", "Conv2dSame", "BatchNormAct2d", "MaxPool2dSame", "AvgPool2dSame")
_DROPPED = (nn.Dropout, nn.Dropout2d, nn.Identity, nn.AlphaDropout)

_FUNCTIONS: dict[Any, str] = {
    F.relu: "relu", torch.relu: "relu", torch.relu_: "relu", F.relu6: "relu6", F.hardswish: "hardswish",
    F.hardsigmoid: "hardsigmoid", F.sigmoid: "sigmoid", torch.sigmoid: "sigmoid", F.silu: "silu", F.gelu: "gelu",
    torch.tanh: "tanh", F.elu: "elu",
}  # fmt: skip
_METHODS = {"relu": "relu", "relu_": "relu", "sigmoid": "sigmoid", "sigmoid_": "sigmoid", "tanh": "tanh"}


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            type(m).__name__ in _LEAVES
            or type(m).__module__ == "zoo.graph.ops"
            or super().is_leaf_module(m, module_qualified_name)
        )


def trace(model: nn.Module, example: torch.Tensor) -> fx.GraphModule:
    """Return the network as a flat graph of vocabulary modules, in eval mode; weights are shared with ``model``.

    Parameters
    ----------
    model: the float network, taking one tensor ``[N, C, H, W]`` and returning logits ``[N, classes]``.
    example: an input of the size the network will see; static padding is worked out for it.

    Raises
    ------
    GraphError: the network cannot be traced, or an operation has no quantized form; the message names it.
    """
    model = model.eval()
    try:
        graph = _Tracer().trace(model)
        traced = fx.GraphModule(model, graph)
        with torch.no_grad():
            ShapeProp(traced).propagate(example)
    except GraphError:
        raise
    except Exception as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise GraphError(
            f"{type(model).__name__}: torch.fx cannot trace it ({first}); write data-dependent control flow out of "
            "forward, or register the submodule as a leaf"
        ) from error
    return _Normalizer(traced).run()


class _Normalizer:
    """Rebuild a traced graph node by node; ``self.value`` maps old nodes to new ones."""

    def __init__(self, traced: fx.GraphModule) -> None:
        self.traced = traced
        self.modules = dict(traced.named_modules())
        self.new = fx.Graph()
        self.kept: dict[str, nn.Module] = {}
        self.value: dict[fx.Node, fx.Node] = {}
        self.pads: dict[fx.Node, tuple[int, int, int, int]] = {}

    def run(self) -> fx.GraphModule:
        for node in self.traced.graph.nodes:
            if node.op == "placeholder":
                if self.value:
                    raise GraphError(f"{node.name}: a network of several inputs; only one image input is supported")
                self.value[node] = self.new.placeholder("image")
            elif node.op == "output":
                result = node.args[0]
                if not isinstance(result, fx.Node):
                    raise GraphError("output: the network must return one tensor of logits")
                self.new.output(self._get(result))
            elif node.op == "call_module":
                self._module(node, self.modules[str(node.target)], str(node.target))
            elif node.op in ("call_function", "call_method"):
                self._function(node)
            elif node.op == "get_attr":
                raise GraphError(f"{node.target}: a constant or parameter used outside a layer cannot be quantized")
        module = fx.GraphModule(self.kept, self.new)
        module.graph.eliminate_dead_code()
        module.recompile()
        return module.eval()

    def _get(self, node: Any) -> fx.Node:
        if not isinstance(node, fx.Node) or node not in self.value:
            raise GraphError(f"{getattr(node, 'name', node)}: its value is not a tensor of this graph")
        if node in self.pads:
            raise GraphError(f"{node.name}: zero padding that no convolution follows cannot be quantized")
        return self.value[node]

    def _emit(self, node: fx.Node, module: nn.Module, name: str, *inputs: fx.Node) -> fx.Node:
        unique, count = name, 1
        while unique in self.kept or any(k.startswith(unique + ".") for k in self.kept):
            if any(True for _ in module.parameters()):
                raise GraphError(f"{name}: a layer with weights is used twice; give each use a layer of its own")
            unique, count = f"{name}_{count}", count + 1
        self.kept[unique] = module
        self.value[node] = self.new.call_module(unique, tuple(inputs))
        return self.value[node]

    def _alias(self, node: fx.Node, source: Any) -> None:
        self.value[node] = self._get(source)

    def _module(self, node: fx.Node, m: nn.Module, name: str) -> None:
        source, kind = node.args[0], type(m).__name__
        if isinstance(m, _DROPPED):
            return self._alias(node, source)
        if isinstance(m, nn.ZeroPad2d):
            return self._pad(node, source, tuple(m.padding))
        if isinstance(m, nn.Conv2d):
            if m.padding_mode != "zeros":
                raise GraphError(f"{name}: padding mode {m.padding_mode!r} has no integer form; use zeros")
            pad = self._conv_pad(m, kind, source)
            assert isinstance(source, fx.Node)
            before = self.value.get(source) if source in self.pads else self._get(source)
            if before is None:
                raise GraphError(f"{name}: its input is not a tensor of this graph")
            self._emit(node, ops.Conv2d.of(m, pad), name, before)
            return None
        x = self._get(source)
        if kind == "BatchNormAct2d":
            plain = nn.BatchNorm2d(m.num_features, eps=m.eps)  # type: ignore[arg-type]
            plain.weight, plain.bias = m.weight, m.bias  # type: ignore[assignment]
            plain.running_mean, plain.running_var = m.running_mean, m.running_var  # type: ignore[assignment]
            y = self._emit(node, plain.eval(), name, x)
            for child in (m.drop, m.act):
                if not isinstance(child, (*_DROPPED, nn.Module)) or isinstance(child, _DROPPED):
                    continue
                act = ops.activation_name(child) or _timm_activation(child)
                if act is None:
                    raise GraphError(f"{name}: activation {type(child).__name__} is not supported{_known()}")
                y = self._emit(node, ops.ACTIVATIONS[act](), f"{name}_act", y)
            return None
        if isinstance(m, nn.Linear | nn.BatchNorm2d | nn.BatchNorm1d | nn.Flatten) or ops.activation_name(m):
            self._emit(node, m, name, x)
        elif isinstance(m, ops.Add | ops.Mul | ops.Cat | ops.GlobalMean):
            self._emit(node, m, name, *[self._get(a) for a in node.args])
        elif isinstance(m, nn.MaxPool2d) and type(m) is nn.MaxPool2d and not m.ceil_mode and m.dilation in (1, (1, 1)):
            self._emit(node, m, name, x)
        elif isinstance(m, nn.AdaptiveAvgPool2d) and m.output_size in (1, (1, 1)):
            self._emit(node, ops.GlobalMean(), name, x)
        elif isinstance(m, nn.AvgPool2d) and type(m) is nn.AvgPool2d:
            shape = source.meta["tensor_meta"].shape  # type: ignore[union-attr]
            kernel = m.kernel_size if isinstance(m.kernel_size, tuple) else (m.kernel_size,) * 2
            if tuple(shape[2:]) == tuple(kernel):
                self._emit(node, ops.GlobalMean(), name, x)
            elif m.padding in (0, (0, 0)) and not m.ceil_mode:
                self._emit(node, m, name, x)
            else:
                raise GraphError(f"{name}: an average pool with padding or ceil_mode has no integer form")
        else:
            raise GraphError(f"{name}: {kind} has no quantized form{_known()}; replace it before quantizing")
        return None

    def _conv_pad(self, m: nn.Conv2d, kind: str, source: Any) -> tuple[int, int, int, int]:
        if kind == "Conv2dSame" or m.padding == "same":
            height, width = source.meta["tensor_meta"].shape[2:]
            (top, bottom), (left, right) = (
                _same(n, m.kernel_size[i], m.stride[i], m.dilation[i]) for i, n in enumerate((height, width))
            )
        else:
            pair = (0, 0) if isinstance(m.padding, str) else m.padding
            (top, left), (bottom, right) = pair, pair
        extra = self.pads.get(source, (0, 0, 0, 0))
        return left + extra[0], right + extra[1], top + extra[2], bottom + extra[3]

    def _pad(self, node: fx.Node, source: Any, pad: tuple[int, ...]) -> None:
        if len(pad) != 4 or min(pad) < 0:
            raise GraphError(f"{node.name}: only non-negative padding of height and width is supported, got {pad}")
        self.value[node] = self._get(source)
        self.pads[node] = (pad[0], pad[1], pad[2], pad[3])

    def _function(self, node: fx.Node) -> None:
        target, args = node.target, node.args
        name = node.name
        if target in (operator.getitem, getattr) or target in ("size", "dim"):
            return None
        act = _FUNCTIONS.get(target) if node.op == "call_function" else _METHODS.get(str(target))
        if act is not None:
            self._emit(node, ops.ACTIVATIONS[act](), name, self._get(args[0]))
        elif target in (operator.add, operator.iadd, torch.add, "add", "add_"):
            self._binary(node, ops.Add())
        elif target in (operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_"):
            self._binary(node, ops.Mul())
        elif target in (torch.cat, torch.concat):
            dim = node.kwargs.get("dim", args[1] if len(args) > 1 else 0)
            if dim != 1:
                raise GraphError(f"{name}: only concatenation over channels (dim=1) is supported, got dim={dim}")
            self._emit(node, ops.Cat(), name, *[self._get(a) for a in args[0]])  # type: ignore[union-attr]
        elif target in (torch.flatten, "flatten", "view", "reshape", torch.reshape, "squeeze"):
            before, after = (n.meta["tensor_meta"].shape for n in (args[0], node))  # type: ignore[union-attr]
            if len(after) != 2 or after[0] != before[0]:
                raise GraphError(f"{name}: a reshape from {list(before)} to {list(after)} is not a flatten")
            self._emit(node, nn.Flatten(1), name, self._get(args[0]))
        elif target in (torch.mean, "mean"):
            self._mean(node)
        elif target is F.adaptive_avg_pool2d and args[1] in (1, (1, 1)):
            self._emit(node, ops.GlobalMean(), name, self._get(args[0]))
        elif target is F.pad:
            if node.kwargs.get("mode", args[2] if len(args) > 2 else "constant") != "constant":
                raise GraphError(f"{name}: only zero padding is supported")
            pad: Any = args[1]
            self._pad(node, args[0], tuple(int(p) for p in pad))
        elif target in (F.dropout, "contiguous", "float"):
            self._alias(node, args[0])
        else:
            label = getattr(target, "__name__", str(target))
            where = node.meta.get("nn_module_stack") or {}
            inside = next(reversed(list(where)), "") if where else ""
            raise GraphError(
                f"{inside or 'network'}: operation {label!r} (node {name}) has no quantized form{_known()}; "
                "replace it before quantizing"
            )
        return None

    def _binary(self, node: fx.Node, module: nn.Module) -> None:
        for side in node.args:
            if not isinstance(side, fx.Node):
                raise GraphError(f"{node.name}: arithmetic with the constant {side!r} has no quantized form")
        self._emit(node, module, node.name, *[self._get(a) for a in node.args])

    def _mean(self, node: fx.Node) -> None:
        dims: Any = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
        keep = node.kwargs.get("keepdim", node.args[2] if len(node.args) > 2 else False)
        rank = len(node.args[0].meta["tensor_meta"].shape)  # type: ignore[union-attr]
        if not isinstance(dims, tuple | list) or sorted(d % rank for d in dims) != [2, 3]:
            raise GraphError(f"{node.name}: only the mean over height and width is supported, got dim={dims}")
        y = self._emit(node, ops.GlobalMean(), node.name, self._get(node.args[0]))
        if not keep:
            self._emit(node, nn.Flatten(1), f"{node.name}_flatten", y)


def _same(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


def _timm_activation(module: nn.Module) -> str | None:
    names: dict[str, str] = {
        "Swish": "silu", "HardSwish": "hardswish", "HardSigmoid": "hardsigmoid", "Sigmoid": "sigmoid", "Tanh": "tanh",
    }  # fmt: skip
    return names.get(type(module).__name__)


def _known() -> str:
    return (
        " (known: conv, linear, batch norm, add, mul, cat, mean, average and max pool, flatten, activations "
        f"{', '.join(ops.ACTIVATIONS)})"
    )


def single_consumer(node: fx.Node) -> fx.Node | None:
    """Return the only user of a node, or None when it has several."""
    users = list(node.users)
    return users[0] if len(users) == 1 else None


Rewrite = Callable[[fx.GraphModule], fx.GraphModule]
