"""Match conv / linear / add with a following ReLU, and swap the float graph's modules for Q-modules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import fx, nn

from zoo.errors import GraphError, RecipeError
from zoo.graph import ops
from zoo.graph.fold import clone
from zoo.quant import layers as q
from zoo.quant.quantizer import Quantizer
from zoo.quant.spec import Format, QuantConfig, change

_FUSABLE = (nn.Conv2d, nn.Linear, ops.Add)


def insert_quantizers(net: fx.GraphModule, config: QuantConfig, *, keep_norms: bool = False) -> fx.GraphModule:
    """Return a Q-graph of the same function; every quantizer passes its tensor through until it is calibrated.

    ``keep_norms`` makes a BatchNorm part of the layer before it. Raises GraphError for any other BatchNorm that is
    still there, RecipeError for an override that matches nothing.
    """
    net = clone(net)
    modules = dict(net.named_modules())
    nodes = [n for n in net.graph.nodes if n.op == "call_module"]
    kinds = {n: modules[str(n.target)] for n in nodes}
    weighted = [str(n.target) for n in nodes if isinstance(kinds[n], nn.Conv2d | nn.Linear)]
    if not weighted:
        raise GraphError("the network has no convolution and no linear layer: there is nothing to quantize")
    chosen = _Formats(config, kinds, weighted[0], weighted[-1])
    norms: dict[fx.Node, fx.Node] = {}
    fused: dict[fx.Node, tuple[str, fx.Node]] = {}
    for node in nodes:
        if not isinstance(kinds[node], _FUSABLE):
            continue
        user = _only_user(node)
        if keep_norms and isinstance(kinds[node], nn.Conv2d | nn.Linear) and _is_norm(kinds.get(user)):
            assert user is not None
            norms[node] = user
            user = _only_user(user)
        act = ops.activation_name(kinds[user]) if user in kinds else None
        if act in ("relu", "relu6"):
            assert user is not None and act is not None
            fused[node] = (act, user)

    nonnegative: dict[fx.Node, bool] = {}
    image = next(n for n in net.graph.nodes if n.op == "placeholder")
    name = _free(net, "input")
    net.add_submodule(name, q.QInput(Quantizer(config.input, signed=config.input.symmetric)))
    with net.graph.inserting_after(image):
        entry = net.graph.call_module(name, (image,))
    image.replace_all_uses_with(entry, delete_user_cb=lambda user: user is not entry)
    nonnegative[entry] = False
    swallowed = {user for _, user in fused.values()} | set(norms.values())
    readings: list[tuple[fx.Node, Format]] = []
    for node in nodes:
        if node in swallowed:
            continue
        module, name = kinds[node], str(node.target)
        act, last = fused.get(node, (None, norms.get(node, node)))
        inputs = [nonnegative[a] for a in node.args if isinstance(a, fx.Node)]
        function = ops.activation_name(module)
        positive = act is not None or (function in ops.NONNEGATIVE if function else all(inputs) and _keeps_sign(module))
        if not isinstance(module, q.PASSING):
            reading = chosen.readings(last)
            fmt = chosen.output(last, node, [wanted for _, wanted in reading])
            out = _quantizer(fmt, positive)
            readings += [(reader, wanted) for reader, wanted in reading if wanted != fmt]
            twin = _twin(module, name, chosen.weight(name), out, act)
            if node in norms:
                assert isinstance(twin, q.QWeighted)
                twin.norm = _norm(kinds[norms[node]], str(norms[node].target), twin)
            net.set_submodule(name, twin)
        if last is not node:
            last.replace_all_uses_with(node)
        for gone in dict.fromkeys((last, norms.get(node, node))):
            if gone is not node:
                net.graph.erase_node(gone)
                net.delete_submodule(str(gone.target))
        nonnegative[node] = positive
    chosen.check()
    _requantize(net, readings, nonnegative)
    net.recompile()
    return net.eval()


def _free(net: fx.GraphModule, name: str) -> str:
    """Return the name, longer by underscores where the network has a module of it."""
    while any(n == name or n.startswith(f"{name}.") for n, _ in net.named_modules()):
        name += "_"
    return name


def _quantizer(fmt: Format, positive: bool) -> Quantizer:
    unsigned = positive and fmt.bits != 16
    if unsigned:
        fmt = replace(fmt, symmetric=True, narrow=False)
    return Quantizer(fmt, signed=fmt.symmetric and not unsigned)


def _requantize(
    net: fx.GraphModule, readings: list[tuple[fx.Node, Format]], nonnegative: Mapping[fx.Node, bool]
) -> None:
    """Put a requantization before each of these layers, one for all layers that read a tensor in the same format."""
    made: dict[tuple[fx.Node, Format], fx.Node] = {}
    for reader, fmt in readings:
        (source,) = reader.all_input_nodes
        if (source, fmt) not in made:
            name = _free(net, f"{source.target}_read")
            net.add_submodule(name, q.QRequantize(_quantizer(fmt, nonnegative[source])))
            with net.graph.inserting_after(source):
                made[source, fmt] = net.graph.call_module(name, (source,))
        reader.replace_input_with(source, made[source, fmt])


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is_norm(module: nn.Module | None) -> bool:
    return isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)


def _norm(module: nn.Module, name: str, layer: q.QWeighted) -> nn.BatchNorm1d | nn.BatchNorm2d:
    assert isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
    if module.running_var is None:
        raise GraphError(f"{name}: batch normalisation without running statistics cannot be merged; train it with "
                         "track_running_stats=True")  # fmt: skip
    if layer.weight_quantizer.fmt.scale != "float":
        raise RecipeError(f"quant.weight.scale: {name} would be merged into a power-of-two scale; use float scales, or "
                          "the step fold_batchnorm before quantize")  # fmt: skip
    return module


def _keeps_sign(module: nn.Module) -> bool:
    return isinstance(module, (ops.Add, ops.Mul, ops.Cat, ops.GlobalMean, nn.AvgPool2d, *q.PASSING))


def _twin(module: nn.Module, name: str, weight: Format, out: Quantizer, act: str | None) -> nn.Module:
    if isinstance(module, ops.Conv2d):
        return q.QConv2d(module, weight, out, act)
    if isinstance(module, nn.Linear):
        return q.QLinear(module, weight, out, act)
    if isinstance(module, ops.Add):
        return q.QAdd(out, act)
    if isinstance(module, nn.AvgPool2d):
        kernel = module.kernel_size if isinstance(module.kernel_size, tuple) else (module.kernel_size,) * 2
        stride = module.stride if isinstance(module.stride, tuple) else (module.stride,) * 2
        return q.QAvgPool(kernel, stride, out)
    simple = {ops.Mul: q.QMul, ops.Cat: q.QCat, ops.GlobalMean: q.QMean}
    for kind, twin in simple.items():
        if isinstance(module, kind):
            return twin(out)
    function = ops.activation_name(module)
    if function is not None:
        return q.QTable(function, out)
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        raise GraphError(f"{name}: batch normalisation is still there; put the step fold_batchnorm before quantize, "
                         "or quantize: {batchnorm: merge} behind a convolution or linear layer")  # fmt: skip
    raise GraphError(f"{name}: {type(module).__name__} has no quantized form")


class _Formats:
    """Work out each tensor's format once: base, special tensors, then the overrides in order, the last one winning."""

    def __init__(self, config: QuantConfig, kinds: Mapping[fx.Node, nn.Module], first: str, last: str) -> None:
        self.config, self.kinds, self.first, self.last = config, kinds, first, last
        self.used: set[tuple[int, str]] = set()

    def weight(self, name: str) -> Format:
        fmt = self.config.weight
        for i, override in enumerate(self.config.overrides):
            if override.weight is not None and override.matches(name, self.first, self.last):
                if name in {str(n.target) for n, m in self.kinds.items() if hasattr(m, "weight")}:
                    self.used.add((i, "weight"))
                fmt = change(fmt, override, "weight", f"quant.overrides[{i}]")
        return fmt

    def output(self, end: fx.Node, node: fx.Node, wanted: list[Format]) -> Format:
        users = self._readers(end)
        if wanted and len(wanted) == len(users) and all(fmt == wanted[0] for fmt in wanted):
            return wanted[0]
        if any(u.op == "output" for u in users):
            fmt = self.config.logits
        elif any(u in self.kinds and _is_table(self.kinds[u]) for u in users):
            fmt = self.config.table
        else:
            fmt = self.config.act
        for i, override in enumerate(self.config.overrides):
            if override.act is not None and override.matches(str(node.target), self.first, self.last):
                self.used.add((i, "act"))
                fmt = change(fmt, override, "act", f"quant.overrides[{i}]")
            if (
                override.input is not None
                and self.config.read is None
                and any(u.op == "call_module" and override.matches(str(u.target), self.first, self.last) for u in users)
            ):
                self.used.add((i, "input"))
                fmt = change(fmt, override, "input", f"quant.overrides[{i}]")
        return fmt

    def readings(self, end: fx.Node) -> list[tuple[fx.Node, Format]]:
        """Return the layers with a weight that read a tensor, each with the format that ``read`` gives it."""
        if self.config.read is None:
            return []
        found = []
        for user in self._readers(end):
            if not isinstance(self.kinds.get(user), nn.Conv2d | nn.Linear):
                continue
            fmt = self.config.read
            for i, override in enumerate(self.config.overrides):
                if override.input is not None and override.matches(str(user.target), self.first, self.last):
                    self.used.add((i, "input"))
                    fmt = change(fmt, override, "input", f"quant.overrides[{i}]")
            found.append((user, fmt))
        return found

    def _readers(self, node: fx.Node) -> list[fx.Node]:
        found: list[fx.Node] = []
        for user in node.users:
            passing = user in self.kinds and isinstance(self.kinds[user], q.PASSING)
            found += self._readers(user) if passing else [user]
        return found

    def check(self) -> None:
        names = ", ".join(str(n.target) for n in list(self.kinds)[:8])
        hints = {"input": "; the image has the format of quant.input"}
        if self.config.read:
            hints["act"] = "; what only layers read has the format of quant.read"
        for i, override in enumerate(self.config.overrides):
            # one that changes nothing at all is meant to name layers
            parts = [p for p in ("weight", "act", "input") if getattr(override, p) is not None] or ["weight"]
            for part in parts:
                if (i, part) not in self.used:
                    raise RecipeError(
                        f"quant.overrides[{i}].{part}: match {override.match!r} matches nothing; layers are named "
                        f"{names}, ...{hints.get(part, '')}"
                    )


def _is_table(module: nn.Module) -> bool:
    name = ops.activation_name(module)
    return name is not None
