"""Program <-> tensors and JSON. Decoding trusts nothing: every field, shape and range is checked."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from zoo.artifact.packing import PACKED, pack, unpack, words_per_row
from zoo.errors import ArtifactError
from zoo.graph import names, ops
from zoo.integer.program import Node, Program, TensorFormat, WeightFormat

_ATTRS: dict[str, tuple[str, ...]] = {
    "input": (), "conv2d": ("stride", "pad", "dilation", "groups"), "linear": (), "add": (), "mul": (), "cat": (),
    "mean": (), "avg_pool": ("kernel_size", "stride"), "max_pool": ("kernel_size", "stride", "padding"),
    "flatten": (), "slice": ("start", "stop"), "table": ("function",), "requantize": (),
}  # fmt: skip
_ARITY = {"input": 0, "add": 2, "mul": 2}
_UNFORMATTED = ("max_pool", "flatten", "slice")
_TABLES = (torch.uint8, torch.int16, torch.int32)
_MAX_SIDE, _MAX_NODES = 4096, 1024
# a channel costs a proof of its own (docs/semantics.md, section 5), whatever its weights take in the file
_MAX_OUT, _MAX_CHANNELS = 2**16, 2**18
_MAX_WEIGHTS = 2**28  # packed to 2 bits, these take a sixteenth of what they take in memory
_LATER = ("mid_rise", "shift")  # fields of a weight that are written only where they are set
BIAS = "bias"  # no node's own: theirs have a dot


def encode(program: Program) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Return the tensors of model.safetensors and the node list of config.json.

    Weights of 2, 3 and 4 bits are flattened to ``[out, in*kh*kw]`` and packed; wider ones are plain int8. The biases of
    all nodes lie one behind the other in ``bias``: an entry of the file's header takes more bytes than many of them.
    Scales of activations lie in the node list, as float32 values in JSON (exact: shortest round-trip decimals of
    doubles).
    """
    tensors: dict[str, Tensor] = {}
    nodes, biases = [], []
    for node in program.nodes:
        entry: dict[str, Any] = {"name": node.name, "op": node.op, "inputs": list(node.inputs)}
        if node.attrs:
            entry["attrs"] = node.attrs
        if node.out is not None:
            entry["out"] = asdict(node.out)
        if node.weight is not None:
            entry["weight"] = asdict(node.weight) | {"shape": list(program.tensors[f"{node.name}.weight"].shape)}
            # files from before there were these keep their bytes
            entry["weight"] = {k: v for k, v in entry["weight"].items() if v or k not in _LATER}
            tensors |= _encode_weight(node, program)
            biases.append(program.tensors[f"{node.name}.bias"])
        if node.op == "table":
            tensors[f"{node.name}.table"] = _smallest(program.tensors[f"{node.name}.table"]).contiguous()
        nodes.append(entry)
    return tensors | ({BIAS: torch.cat(biases)} if biases else {}), nodes


def _smallest(table: Tensor) -> Tensor:
    low, high = int(table.min()), int(table.max())
    return table.to(next(t for t in _TABLES if torch.iinfo(t).min <= low and high <= torch.iinfo(t).max))


def _encode_weight(node: Node, program: Program) -> dict[str, Tensor]:
    assert node.weight is not None
    name, bits = node.name, node.weight.bits
    codes = program.tensors[f"{name}.weight"]
    found = {f"{name}.weight_scale": program.tensors[f"{name}.weight_scale"].contiguous()}
    if f"{name}.weight_zero_point" in program.tensors:
        zero = program.tensors[f"{name}.weight_zero_point"]
        found[f"{name}.weight_zero_point"] = node.weight.gather(zero).to(zero.dtype).contiguous()
    rows = node.weight.gather(codes).flatten(1)
    if bits in PACKED:
        offset = 2 ** (bits - 1) if node.weight.symmetric else 0
        found[f"{name}.weight_packed"] = pack(rows + offset, bits)
    else:
        found[f"{name}.weight_packed"] = rows.to(codes.dtype).contiguous()
    return found


def decode(tensors: dict[str, Tensor], nodes: Any, input_shape: Any, where: str) -> Program:
    """Return the Program; ArtifactError names the first node or tensor that is missing, extra or malformed."""
    shape = _ints(input_shape, 3, 1, _MAX_SIDE, f"{where}: input_shape")
    if not isinstance(nodes, list) or not 0 < len(nodes) <= _MAX_NODES:
        raise ArtifactError(f"{where}: nodes must be a list of 1 to {_MAX_NODES} entries")
    program = Program([], {}, (shape[0], shape[1], shape[2]))
    left = dict(tensors)
    seen: set[str] = set()
    channels, weights = 0, 0
    for i, entry in enumerate(nodes):
        node = _node(entry, seen, f"{where}: nodes[{i}]")
        if (node.op == "input") != (i == 0):
            raise ArtifactError(f"{where}: nodes[{i}]: exactly the first node must be the input")
        seen.add(node.name)
        program.nodes.append(node)
        if node.weight is not None:
            _decode_weight(node, entry["weight"], _MAX_WEIGHTS - weights, left, program, where)
            channels += len(program.tensors[f"{node.name}.weight"])
            if channels > _MAX_CHANNELS:
                raise ArtifactError(f"{where}: more than {_MAX_CHANNELS} output channels, beyond any edge network")
            weights += program.tensors[f"{node.name}.weight"].numel()
        elif node.op == "table":
            source = program.format_of(node.inputs[0])
            stored = _take(left, f"{node.name}.table", (source.qmax - source.qmin + 1,), where)
            if stored.dtype not in _TABLES:
                raise ArtifactError(f"{where}: {node.name}.table must be uint8, int16 or int32, is {stored.dtype}")
            table = stored.to(torch.int32)
            assert node.out is not None
            if int(table.min()) < node.out.qmin or int(table.max()) > node.out.qmax:
                raise ArtifactError(f"{where}: {node.name}.table holds codes outside the node's format")
            program.tensors[f"{node.name}.table"] = table
    weighted = [n.name for n in program.nodes if n.weight is not None]
    stray = sorted(set(left) - ({BIAS} if weighted else set()))
    if stray:
        raise ArtifactError(f"{where}: tensor {stray[0]!r} belongs to no node of config.json")
    if weighted:
        _decode_biases(left, weighted, program, where)
    return program


def _take(left: dict[str, Tensor], key: str, shape: tuple[int, ...], where: str) -> Tensor:
    if key not in left:
        raise ArtifactError(f"{where}: tensor {key!r} is missing from model.safetensors")
    tensor = left.pop(key)
    if tuple(tensor.shape) != shape:
        raise ArtifactError(f"{where}: tensor {key!r} has shape {list(tensor.shape)}, config.json says {list(shape)}")
    return tensor


def _node(entry: Any, seen: set[str], where: str) -> Node:
    if not isinstance(entry, dict):
        raise ArtifactError(f"{where}: expected a mapping")
    unknown = set(entry) - {"name", "op", "inputs", "attrs", "out", "weight"}
    if unknown:
        raise ArtifactError(f"{where}: field {sorted(unknown)[0]!r} is unknown")
    name, op, inputs = entry.get("name"), entry.get("op"), entry.get("inputs")
    if not isinstance(name, str) or not names.plain(name) or name in seen:
        raise ArtifactError(f"{where}: the name {str(name)[:100]!r} is not a new dotted identifier")
    if any(other.startswith(f"{name}.") or name.startswith(f"{other}.") for other in seen):
        raise ArtifactError(f"{where}: the name {name!r} lies within another node's")
    if op not in list(_ATTRS):
        raise ArtifactError(f"{where}: operation {op!r} is unknown (known: {', '.join(_ATTRS)})")
    if not isinstance(inputs, list) or any(i not in seen for i in inputs if isinstance(i, str)):
        raise ArtifactError(f"{where}: inputs must name earlier nodes")
    wanted = _ARITY.get(op, len(inputs) if op == "cat" and inputs else 1)
    if len(inputs) != wanted or not all(isinstance(i, str) for i in inputs):
        raise ArtifactError(f"{where}: {op} takes {wanted} inputs, got {len(inputs)}")
    attrs = _attrs(op, entry.get("attrs", {}), where)
    out = None if op in _UNFORMATTED else _format(entry.get("out"), f"{where}.out")
    weight = None
    if op in ("conv2d", "linear"):
        fields = entry.get("weight")
        expected = {"bits", "symmetric", "per_channel", "narrow", "shape"}
        if not isinstance(fields, dict) or set(fields) - set(_LATER) != expected:
            raise ArtifactError(f"{where}.weight: needs exactly the fields {', '.join(sorted(expected))}")
        if (
            type(fields["bits"]) is not int
            or fields["bits"] not in range(2, 9)
            or not all(isinstance(fields[k], bool) for k in set(fields) - {"bits", "shape", "shift"})
        ):
            raise ArtifactError(f"{where}.weight: bits must be 2..8 and the flags true or false")
        if fields["narrow"] and not fields["symmetric"]:
            raise ArtifactError(f"{where}.weight: a narrow range needs a symmetric format")
        weight = WeightFormat(**{key: value for key, value in fields.items() if key != "shape"})
        if weight.mid_rise and (weight.bits not in PACKED or not weight.symmetric or weight.narrow):
            raise ArtifactError(f"{where}.weight: mid_rise needs a symmetric format of 2..4 bits, not narrow")
        if type(weight.shift) is not int or not 0 <= weight.shift <= weight.largest_shift:
            raise ArtifactError(f"{where}.weight.shift: must be 0..{weight.largest_shift}, so that integers fit a byte")
    return Node(name, op, tuple(inputs), attrs, out, weight)


def _attrs(op: str, attrs: Any, where: str) -> dict[str, Any]:
    if not isinstance(attrs, dict):
        raise ArtifactError(f"{where}.attrs: expected a mapping")
    known = _ATTRS[op]
    optional = ("act",) if op in ("conv2d", "linear", "add") else ()
    if not set(known) <= set(attrs) <= {*known, *optional}:
        raise ArtifactError(f"{where}.attrs: {op} needs exactly {', '.join(known) or 'no attributes'}")
    for key, value in attrs.items():
        if key == "act":
            good = value in ("relu", "relu6")
        elif key == "function":
            good = value in list(ops.ACTIVATIONS)
        elif key == "groups":
            good = type(value) is int and 1 <= value <= 65536
        elif key in ("start", "stop"):
            good = type(value) is int and 0 <= value <= _MAX_CHANNELS
        else:
            least = 0 if key in ("pad", "padding") else 1
            _ints(value, 4 if key == "pad" else 2, least, _MAX_SIDE, f"{where}.attrs.{key}")
            good = True
        if not good:
            raise ArtifactError(f"{where}.attrs.{key}: {value!r} is not valid")
    if op == "slice" and attrs["start"] >= attrs["stop"]:
        raise ArtifactError(f"{where}.attrs: no channel lies from {attrs['start']} to before {attrs['stop']}")
    return attrs


def _ints(value: Any, count: int, least: int, most: int, where: str) -> list[int]:
    if (
        not isinstance(value, list)
        or len(value) != count
        or any(type(v) is not int or not least <= v <= most for v in value)
    ):
        raise ArtifactError(f"{where}: expected {count} integers in {least}..{most}, got {value!r}")
    return value


def _format(fields: Any, where: str) -> TensorFormat:
    expected = set(TensorFormat.__dataclass_fields__)
    if not isinstance(fields, dict) or set(fields) != expected:
        raise ArtifactError(f"{where}: needs exactly the fields {', '.join(sorted(expected))}")
    scale = fields["scale"]
    # smaller ones are zero or denormal as float32
    if type(scale) not in (int, float) or not 1e-37 < scale < 1e30:
        shown = str(scale)[:40] if type(scale) is float else type(scale).__name__
        raise ArtifactError(f"{where}.scale: must be a positive finite number, got {shown}")
    nearest = float(torch.tensor(float(scale), dtype=torch.float32))
    if nearest != scale:  # engines hold float32, and would compute other codes
        raise ArtifactError(f"{where}.scale: {str(scale)[:40]} is no float32; write {nearest!r}")
    for key in ("bits", "qmin", "qmax", "zero_point"):
        if type(fields[key]) is not int:
            raise ArtifactError(f"{where}.{key}: must be an integer, got {fields[key]!r}")
    if fields["bits"] not in (2, 3, 4, 5, 6, 7, 8, 16) or type(fields["signed"]) is not bool:
        raise ArtifactError(f"{where}: bits must be 2..8 or 16 and signed true or false")
    out = TensorFormat(**fields | {"scale": float(scale)})
    widest = (-(2 ** (out.bits - 1)), 2 ** (out.bits - 1) - 1) if out.signed else (0, 2**out.bits - 1)
    if not widest[0] <= out.qmin < out.qmax <= widest[1] or not out.qmin <= out.zero_point <= out.qmax:
        raise ArtifactError(f"{where}: qmin, qmax and zero_point do not fit {out.bits} bits")
    return out


def _decode_biases(left: dict[str, Tensor], names: list[str], program: Program, where: str) -> None:
    counts = [len(program.tensors[f"{name}.weight"]) for name in names]
    bias = _take(left, BIAS, (sum(counts),), where)
    if bias.dtype != torch.int32:
        raise ArtifactError(f"{where}: tensor {BIAS!r} must be int32, is {bias.dtype}")
    for name, part in zip(names, torch.split(bias, counts), strict=True):
        program.tensors[f"{name}.bias"] = part.clone()


def _decode_weight(
    node: Node, fields: Any, most: int, left: dict[str, Tensor], program: Program, where: str
) -> None:  # fmt: skip
    assert node.weight is not None
    name, bits = node.name, node.weight.bits
    shape = _ints(fields["shape"], 4 if node.op == "conv2d" else 2, 1, 2**20, f"{where}: {name}.weight.shape")
    out, columns = shape[0], math.prod(shape[1:])
    if out > _MAX_OUT or columns > 2**22 or out * columns > most:
        raise ArtifactError(f"{where}: {name}.weight.shape {shape} is beyond any edge network")
    scale_shape = (out if node.weight.per_channel else 1,)
    scale = _take(left, f"{name}.weight_scale", scale_shape, where)
    if scale.dtype != torch.float32 or not bool((torch.isfinite(scale) & (scale > 0)).all()):
        raise ArtifactError(f"{where}: {name}.weight_scale must hold positive finite float32 values")
    program.tensors[f"{name}.weight_scale"] = scale
    if not node.weight.symmetric:
        zero = _take(left, f"{name}.weight_zero_point", scale_shape, where)
        if zero.dtype != torch.int32 or int(zero.min()) < 0 or int(zero.max()) >= 2**bits:
            raise ArtifactError(f"{where}: {name}.weight_zero_point must hold int32 codes of {bits} bits")
        program.tensors[f"{name}.weight_zero_point"] = node.weight.spread(zero)
    width = words_per_row(columns, bits) if bits in PACKED else columns
    packed = _take(left, f"{name}.weight_packed", (out, width), where)
    wanted = torch.int32 if bits in PACKED else (torch.int8 if node.weight.symmetric else torch.uint8)
    if packed.dtype != wanted:
        raise ArtifactError(f"{where}: {name}.weight_packed must be {wanted}, is {packed.dtype}")
    if bits in PACKED:
        codes = unpack(packed, bits, columns)
        packed = (codes.to(torch.int16) - 2 ** (bits - 1)).to(torch.int8) if node.weight.symmetric else codes
    low = -(2 ** (bits - 1)) if node.weight.symmetric else 0
    least = low + int(node.weight.narrow)
    if int(packed.min()) < least or int(packed.max()) >= low + 2**bits:
        raise ArtifactError(f"{where}: {name}.weight_packed holds codes beyond {bits} bits")
    program.tensors[f"{name}.weight"] = node.weight.spread(packed).reshape(shape)
