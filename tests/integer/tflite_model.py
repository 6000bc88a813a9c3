"""Write and run one-operator TFLite files with TFLite Micro, the reference of semantics ``tflite``."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np

SCHEMA = "tflite_micro.tensorflow.lite.micro.python.schema_py_generated"
_TYPES = {"int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64"}


@dataclass(frozen=True)
class Value:
    """A tensor: type name and shape in TFLite's order, per-tensor or per-axis scales, constant data or None."""

    kind: str
    shape: tuple[int, ...]
    scales: tuple[float, ...] = ()
    zero_point: int = 0
    axis: int = 0
    data: np.ndarray | None = None


def constant(array: np.ndarray, scales: tuple[float, ...] = (), axis: int = 0) -> Value:
    """Return a constant tensor."""
    return Value(str(array.dtype), array.shape, scales, 0, axis, array)


def write(operator: str, inputs: list[Value], output: Value, **options: Any) -> bytes:
    """Return a file with one operator, such as ``CONV_2D``.

    ``options`` holds ``kind``, the name of its options table without ``Options``, and that table's fields.
    """
    import flatbuffers

    fb = importlib.import_module(SCHEMA)
    model, graph, op, code = fb.ModelT(), fb.SubGraphT(), fb.OperatorT(), fb.OperatorCodeT()
    empty = fb.BufferT()
    model.version, model.buffers, graph.tensors = 3, [empty], []
    for i, value in enumerate([*inputs, output]):
        tensor = fb.TensorT()
        tensor.name, tensor.shape, tensor.type = f"t{i}", list(value.shape), getattr(fb.TensorType, _TYPES[value.kind])
        tensor.buffer = 0
        if value.data is not None:
            buffer = fb.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(value.data).tobytes(), dtype=np.uint8)
            tensor.buffer = len(model.buffers)
            model.buffers.append(buffer)
        if value.scales:
            q = fb.QuantizationParametersT()
            q.scale, q.zeroPoint = list(value.scales), [value.zero_point] * len(value.scales)
            q.quantizedDimension = value.axis
            tensor.quantization = q
        graph.tensors.append(tensor)
    code.builtinCode = getattr(fb.BuiltinOperator, operator)
    code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), 1
    op.opcodeIndex, op.inputs, op.outputs = 0, list(range(len(inputs))), [len(inputs)]
    kind = options.pop("kind", None)
    if kind is not None:
        op.builtinOptionsType = getattr(fb.BuiltinOptions, f"{kind}Options")
        op.builtinOptions = getattr(fb, f"{kind}OptionsT")()
        for name, field in options.items():
            assert hasattr(op.builtinOptions, name), name
            setattr(op.builtinOptions, name, field)
    graph.inputs = [i for i, value in enumerate(inputs) if value.data is None]
    graph.outputs, graph.operators = [len(inputs)], [op]
    model.subgraphs, model.operatorCodes = [graph], [code]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def run(file: bytes, *arrays: np.ndarray) -> np.ndarray:
    """Return the output codes of a file for these inputs."""
    runtime = importlib.import_module("tflite_micro.python.tflite_micro.runtime")
    interpreter = runtime.Interpreter.from_bytes(file, arena_size=1 << 22)
    for i, array in enumerate(arrays):
        interpreter.set_input(np.ascontiguousarray(array), i)
    interpreter.invoke()
    return np.array(interpreter.get_output(0))
