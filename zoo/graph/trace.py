"""Trace a float network with torch.fx and rewrite it into the closed vocabulary (house rule: refuse, never guess)."""

from __future__ import annotations

import contextlib
import io
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from zoo.errors import GraphError
from zoo.graph import names, ops, pools, slices
from zoo.graph.calls import Sizes, arguments, is_constant, shape, within

# timm classes whose forward depends on shapes or dissolves batch normalisation into raw tensors
_LEAVES = ("Linear", "Conv2dSame", "BatchNormAct2d", "MaxPool2dSame", "AvgPool2dSame")
_DROPPED = (nn.Dropout, nn.Dropout2d, nn.Identity, nn.AlphaDropout)

_FUNCTIONS: dict[Any, str] = {
    F.relu: "relu", torch.relu: "relu", torch.relu_: "relu", F.relu6: "relu6", F.hardswish: "hardswish",
    F.hardsigmoid: "hardsigmoid", F.sigmoid: "sigmoid", torch.sigmoid: "sigmoid", F.silu: "silu", F.gelu: "gelu",
    torch.tanh: "tanh", F.elu: "elu", F.leaky_relu: "leaky_relu",
}  # fmt: skip
_POOLS: dict[Any, tuple[type[nn.Module], tuple[str, ...]]] = {
    F.max_pool2d: (nn.MaxPool2d, pools.MAX), torch.max_pool2d: (nn.MaxPool2d, pools.MAX),
    F.avg_pool2d: (nn.AvgPool2d, pools.AVERAGE),
}  # fmt: skip
# a class of one's own that only sets one of these up is one of these
_LAYERS = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.BatchNorm1d)
_METHODS = {"relu": "relu", "relu_": "relu", "sigmoid": "sigmoid", "sigmoid_": "sigmoid", "tanh": "tanh"}


class _Tracer(fx.Tracer):
    def __init__(self) -> None:
        super().__init__()
        self.inside: list[str] = []  # not left on an error, so that it says where

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self.inside.append(self.path_of_module(m))
        result = super().call_module(m, forward, args, kwargs)
        self.inside.pop()
        return result

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            type(m).__name__ in _LEAVES
            or type(m).__module__ == "zoo.graph.ops"
            or any(isinstance(m, kind) and type(m).forward is kind.forward for kind in _LAYERS)
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
    GraphError: the network cannot be traced, an operation has no quantized form, or the graph does not compute what the
    network computes on ``example``; the message names the module.
    """
    model, tracer = model.eval(), _Tracer()
    name = type(model).__name__
    wrapped = isinstance(model, torch.jit.ScriptModule | nn.DataParallel | DistributedDataParallel)
    if wrapped or hasattr(model, "_orig_mod"):  # that of torch.compile, whose class takes seconds to import
        raise GraphError(f"{name}: wraps or compiles a network, which cannot be traced so; give the network itself")
    other = next((f"{n} is {p.dtype}" for n, p in model.named_parameters() if p.dtype != torch.float32), None)
    if other is not None:
        raise GraphError(f"{name}: {other}, a network to quantize is float32; call .float() on it")
    try:
        found = tracer.trace(model)
        _check_names(found)
        traced = fx.GraphModule(model, found)
        # what nothing reads, such as a head that only a training uses, need not have a quantized form
        traced.graph.eliminate_dead_code()
    except GraphError:
        raise
    except Exception as error:
        inside = f"{name}.{tracer.inside[-1]}" if tracer.inside else name
        raise GraphError(
            f"{inside}: torch.fx cannot trace it ({_reason(error)}); write data-dependent control flow out of forward, "
            "or replace the module"
        ) from error
    try:
        # torch prints the stack of an error before raising it
        with torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):
            Sizes(traced).propagate(example.clone())
    except Exception as error:
        raise GraphError(
            f"{name}: it fails on an input of {list(example.shape)} ({_reason(error.__cause__ or error)}); give an "
            "example of the size that it takes"
        ) from error
    graph = _Normalizer(traced).run()
    _compare(graph, model, example)
    return graph


def _check_names(graph: fx.Graph) -> None:
    for node in graph.nodes:
        if node.op == "call_module" and not names.plain(str(node.target)):
            raise GraphError(f"{str(node.target)!r}: a checkpoint cannot name a layer so; use letters, digits and _, "
                             "and no attribute of torch.fx.GraphModule")  # fmt: skip


def _reason(error: BaseException) -> str:
    return " ".join((str(error).splitlines() or [type(error).__name__])[0].split())[:200]


@torch.no_grad()
def _compare(graph: fx.GraphModule, model: nn.Module, example: torch.Tensor) -> None:
    """Refuse what the rules above cannot see: hooks, randomness, in-place changes of a tensor that is read again."""
    if example.device.type == "meta":
        return
    found, wanted = graph(example.clone()), model(example.clone())
    largest = float(wanted.abs().max()) if wanted.numel() else 0.0
    if largest < float("inf") and not torch.allclose(found, wanted, rtol=0.0, atol=1e-3 * largest + 1e-6):
        raise GraphError(
            f"{type(model).__name__}: its graph computes something else than the network; remove forward hooks, random "
            "operations and in-place changes of tensors that are read again"
        )


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
            raise GraphError(
                f"{within(node)}{getattr(node, 'name', node)}: sizes, constants and several results at once have no "
                "quantized form; replace what computes it"
            )
        if node in self.pads:
            raise GraphError(f"{node.name}: zero padding that no convolution follows cannot be quantized")
        return self.value[node]

    def _emit(self, node: fx.Node, module: nn.Module, name: str, *inputs: fx.Node) -> fx.Node:
        unique, count = name, 1
        # a function takes no name that belongs to a module of the network, which may still come
        while (
            unique in self.kept
            or any(k.startswith(unique + ".") for k in self.kept)
            or (unique in self.modules and not (node.op == "call_module" and unique == node.target))
        ):
            if any(True for _ in module.parameters()):
                raise GraphError(f"{name}: a layer with weights is used twice; give each use a layer of its own")
            unique, count = f"{name}_{count}", count + 1
        self.kept[unique] = module
        self.value[node] = self.new.call_module(unique, tuple(inputs))
        return self.value[node]

    def _alias(self, node: fx.Node, source: Any) -> None:
        self.value[node] = self._get(source)

    def _module(self, node: fx.Node, m: nn.Module, name: str) -> None:
        given = [*node.args, *node.kwargs.values()]
        if not given:
            raise GraphError(f"{name}: {type(m).__name__} is called without a tensor")
        source, kind = given[0], type(m).__name__
        if isinstance(m, _DROPPED):
            return self._alias(node, source)
        if isinstance(m, nn.ZeroPad2d):
            return self._pad(node, source, tuple(m.padding))
        if isinstance(m, nn.Conv2d):
            if not isinstance(m.weight, nn.Parameter):
                raise GraphError(f"{name}: its weight is computed in forward; remove weight norm and parametrizations")
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
                act = _activation(child, name)
                if act is None:
                    raise GraphError(f"{name}: activation {type(child).__name__} is not supported{_known()}")
                y = self._emit(node, ops.ACTIVATIONS[act](), f"{name}_act", y)
            return None
        act = _activation(m, name) if ops.activation_name(m) else None
        if act is not None:
            self._emit(node, ops.ACTIVATIONS[act](), name, x)
        elif isinstance(m, nn.Flatten):
            self._flatten(node, source, name)
        elif isinstance(m, nn.Linear):
            if len(shape(source)) != 2:
                raise GraphError(f"{name}: a linear layer takes [N, features] here, got {shape(source)}; flatten first")
            self._emit(node, ops.Linear.of(m) if isinstance(m.weight, nn.Parameter) else m, name, x)
        elif isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d):
            self._emit(node, m, name, x)
        elif isinstance(m, ops.Add | ops.Mul | ops.Cat | ops.Slice | ops.GlobalMean):
            self._emit(node, m, name, *[self._get(a) for a in given])
        elif type(m) in (nn.MaxPool2d, nn.AvgPool2d):
            self._pool(node, m, name, source)
        elif isinstance(m, nn.AdaptiveAvgPool2d):
            self._adaptive(node, source, m.output_size, name)
        else:
            raise GraphError(f"{name}: {kind} has no quantized form{_known()}; replace it before quantizing")
        return None

    def _pool(self, node: fx.Node, m: nn.Module, name: str, source: Any) -> None:
        x = self._get(source)
        # with return_indices there are two results
        after = getattr(node.meta["tensor_meta"], "shape", ())
        self._emit(node, pools.pool(m, shape(source), list(after), name), name, x)

    def _adaptive(self, node: fx.Node, source: Any, wanted: Any, name: str) -> None:
        pool = pools.adaptive(wanted, shape(source), name)
        if pool is None:
            return self._alias(node, source)
        self._emit(node, pool, name, self._get(source))
        return None

    def _conv_pad(self, m: nn.Conv2d, kind: str, source: Any) -> tuple[int, int, int, int]:
        if kind == "Conv2dSame" or m.padding == "same":
            height, width = shape(source)[2:]
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
        if is_constant(node) or target in slices.PARTS:
            return None
        act = _FUNCTIONS.get(target) if node.op == "call_function" else _METHODS.get(str(target))
        if act is not None:
            given = arguments(node, "input", "inplace")
            if not isinstance(given.get("inplace", False), bool):
                raise GraphError(f"{name}: {act} with settings of its own has no quantized form; use its defaults")
            self._emit(node, ops.ACTIVATIONS[act](), name, self._get(given["input"]))
        elif target is operator.getitem:
            self._slice(node)
        elif target in (operator.add, operator.iadd, torch.add, "add", "add_"):
            self._binary(node, ops.Add())
        elif target in (operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_"):
            self._binary(node, ops.Mul())
        elif target in (torch.cat, torch.concat):
            given = arguments(node, "tensors", "dim")
            if given.get("dim", 0) != 1:
                raise GraphError(f"{name}: only concatenation over channels (dim=1) is supported, got {given}")
            self._emit(node, ops.Cat(), name, *[self._get(a) for a in given["tensors"]])
        elif target in (torch.flatten, "flatten", "view", "reshape", torch.reshape, "squeeze"):
            self._flatten(node, args[0] if args else node.kwargs["input"], name)
        elif target in (torch.mean, "mean"):
            self._mean(node)
        elif target is F.adaptive_avg_pool2d:
            given = arguments(node, "input", "output_size")
            self._adaptive(node, given["input"], given["output_size"], name)
        elif node.op == "call_function" and target in _POOLS:
            kind, accepted = _POOLS[target]
            given = arguments(node, *accepted)
            self._pool(node, pools.called(kind, given), name, given["input"])
        elif target is F.pad:
            given = arguments(node, "input", "pad", "mode", "value")
            if given.get("mode", "constant") != "constant" or given.get("value") not in (None, 0):
                raise GraphError(f"{name}: only zero padding is supported")
            self._pad(node, given["input"], tuple(int(p) for p in given["pad"]))
        elif target in (F.dropout, "contiguous", "float"):
            self._alias(node, args[0] if args else node.kwargs["input"])
        else:
            label = getattr(target, "__name__", str(target))
            raise GraphError(
                f"{within(node) or 'network: '}operation {label!r} (node {name}) has no quantized form{_known()}; "
                "replace it before quantizing"
            )
        return None

    def _slice(self, node: fx.Node) -> None:
        source, start, stop = slices.taken(node)
        if (start, stop) == (0, shape(source)[1]):
            return self._alias(node, source)
        self._emit(node, ops.Slice(start, stop), "slice", self._get(source))
        return None

    def _flatten(self, node: fx.Node, source: Any, name: str) -> None:
        before, after = shape(source), shape(node)
        if len(after) != 2 or after[0] != before[0]:
            inside = "" if node.op == "call_module" else within(node)
            raise GraphError(f"{inside}{name}: a reshape from {before} to {after} is not a flatten")
        self._emit(node, nn.Flatten(1), name, self._get(source))

    def _binary(self, node: fx.Node, module: nn.Module) -> None:
        given = arguments(node, "input", "other")
        if isinstance(module, ops.Add) and any(type(side) in (int, float) and side == 0 for side in given.values()):
            # sum() of Python begins with it
            return self._alias(node, next(side for side in given.values() if isinstance(side, fx.Node)))
        for side in given.values():
            if not isinstance(side, fx.Node):
                raise GraphError(f"{node.name}: arithmetic with the constant {side!r} has no quantized form")
        sizes = [shape(side) for side in given.values()]
        if isinstance(module, ops.Add) and sizes[0] != sizes[-1]:
            raise GraphError(f"{node.name}: a sum of {sizes[0]} and {sizes[-1]} has no integer form; make them equal")
        if isinstance(module, ops.Mul) and len(sizes[0]) != len(sizes[-1]):
            raise GraphError(
                f"{node.name}: a product of {sizes[0]} and {sizes[-1]} has no integer form; keep dimensions"
            )
        self._emit(node, module, node.name, self._get(given["input"]), self._get(given["other"]))
        return None

    def _mean(self, node: fx.Node) -> None:
        given = arguments(node, "input", "dim", "keepdim")
        dims, rank = given.get("dim"), len(shape(given["input"]))
        if not isinstance(dims, tuple | list) or sorted(d % rank for d in dims) != [2, 3]:
            raise GraphError(f"{node.name}: only the mean over height and width is supported, got dim={dims}")
        y = self._emit(node, ops.GlobalMean(), node.name, self._get(given["input"]))
        if not given.get("keepdim", False):
            self._emit(node, nn.Flatten(1), f"{node.name}_flatten", y)


def _same(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


def _activation(module: nn.Module, where: str) -> str | None:
    """Return the vocabulary's name of an activation, torch's or timm's own, or None for any other module."""
    name = ops.activation_name(module)
    if name is not None and not ops.default_settings(module):
        raise GraphError(f"{where}: {module} has no quantized form, only {name} with its default settings has")
    names: dict[str, str] = {
        "Swish": "silu", "HardSwish": "hardswish", "HardSigmoid": "hardsigmoid", "Sigmoid": "sigmoid", "Tanh": "tanh",
        "GELU": "gelu",
    }  # fmt: skip
    return name or names.get(type(module).__name__)


def _known() -> str:
    return (
        " (known: conv, linear, batch norm, add, mul, cat, mean, average and max pool, flatten, activations "
        f"{', '.join(ops.ACTIVATIONS)})"
    )
