"""What a traced call was given, and what is known of it for images of one size."""

from __future__ import annotations

from typing import Any

from torch import fx
from torch.fx.passes.shape_prop import ShapeProp, TensorMetadata

from zoo.errors import GraphError

# what a call may say without changing anything
_DEFAULTS = {
    "approximate": "none",
    "alpha": 1,
    "negative_slope": 0.01,
    "mode": "constant",
    "value": 0,
    "dtype": None,
    "out": None,
}
# what is known of a tensor before its values are
_KNOWN = (getattr, "size", "dim", "ndimension", "numel")


class Sizes(ShapeProp):
    """Notes the shape of each tensor in ``meta["tensor_meta"]``, and every other result in ``meta["constant"]``."""

    def run_node(self, n: fx.Node) -> Any:
        """Return the node's result."""
        result = super().run_node(n)
        if "tensor_meta" not in n.meta:
            n.meta["constant"] = result
        return result


def is_constant(node: fx.Node) -> bool:
    """Tell whether a call's result is no tensor and depends on shapes only, never on what tensors hold."""
    if "constant" not in node.meta:
        return False
    return node.target in _KNOWN or all(is_constant(source) for source in node.all_input_nodes)


def constants(given: Any) -> Any:
    """Return an argument with what depends on shapes only as the value it has for images of this size."""
    return fx.node.map_arg(given, lambda node: node.meta["constant"] if is_constant(node) else node)


def arguments(node: fx.Node, *names: str) -> dict[str, Any]:
    """Return a call's arguments by name; one that would change the meaning of the operation is refused."""
    given = dict(zip(names, node.args, strict=False))
    for name, value in node.kwargs.items():
        if name in names:
            given[name] = value
        elif name not in _DEFAULTS or value != _DEFAULTS[name]:
            raise GraphError(f"{node.name}: {name}={value!r} has no quantized form; leave that argument out")
    if len(node.args) > len(names) or names[0] not in given:
        raise GraphError(f"{node.name}: a call with {len(node.args)} arguments has no quantized form")
    return {name: constants(value) for name, value in given.items()}


def within(node: Any) -> str:
    """Return the module in which a node was traced, with a colon; empty for the network itself."""
    stack = list((node.meta.get("nn_module_stack") or {}) if isinstance(node, fx.Node) else {})
    return f"{stack[-1]}: " if stack and stack[-1] else ""


def shape(node: Any) -> list[int]:
    """Return a tensor's shape; GraphError for anything that is not one tensor."""
    known = node.meta.get("tensor_meta") if isinstance(node, fx.Node) else None
    if not isinstance(known, TensorMetadata):
        raise GraphError(f"{within(node)}{getattr(node, 'name', node)}: a tensor is expected here, and this is none; "
                         "replace what computes it")  # fmt: skip
    return list(known.shape)
