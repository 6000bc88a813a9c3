"""Write and run one-operator ONNX files with ONNX Runtime, the reference of semantics ``float32``."""

from __future__ import annotations

from typing import Any

import numpy as np


def run(operator: str, arguments: list[np.ndarray], fed: tuple[int, ...], **attributes: Any) -> np.ndarray:
    """Return the uint8 result of an operator; the arguments numbered in ``fed`` are inputs, the others constants.

    The ``QLinear`` operators that ONNX lacks come from ONNX Runtime's own domain.
    """
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    domain = "" if operator == "QLinearConv" else "com.microsoft"
    names = [f"i{i}" for i in range(len(arguments))]
    node = helper.make_node(operator, names, ["y"], domain=domain, **attributes)
    inputs = [helper.make_tensor_value_info(names[i], TensorProto.UINT8, arguments[i].shape) for i in fed]
    constants = [numpy_helper.from_array(a, n) for i, (a, n) in enumerate(zip(arguments, names, strict=True))
                 if i not in fed]  # fmt: skip
    output = helper.make_tensor_value_info("y", TensorProto.UINT8, None)
    graph = helper.make_graph([node], "one", inputs, [output], constants)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    file = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    # without VNNI its kernels for signed weights clip pairs of products to 16 bits; this asks for those that do not
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {names[i]: arguments[i] for i in fed})[0])


def scale(value: float) -> np.ndarray:
    """Return a scale as ONNX takes it."""
    return np.array(value, dtype=np.float32)


def zero(value: int) -> np.ndarray:
    """Return an activation's zero point."""
    return np.array(value, dtype=np.uint8)
