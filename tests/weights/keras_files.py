"""Keras's names, layouts and files, written from its documentation; nothing here is shared with the converters."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor

Arrays = dict[str, "np.ndarray[Any, Any]"]
NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


def norm(state: dict[str, Tensor], ours: str, theirs: str) -> Iterator[tuple[str, Any]]:
    for keras, torch in NORM.items():
        yield f"{theirs}/{keras}", state[f"{ours}.{torch}"].numpy()


def conv(state: dict[str, Tensor], ours: str, theirs: str) -> Iterator[tuple[str, Any]]:
    """Yield an ordinary convolution: height, width, input channel, output channel."""
    yield f"{theirs}/kernel", np.einsum("oihw->hwio", state[f"{ours}.weight"].numpy())
    if f"{ours}.bias" in state:
        yield f"{theirs}/bias", state[f"{ours}.bias"].numpy()


def resnet8(state: dict[str, Tensor]) -> Arrays:
    """Return the tensors as Keras numbers its layers: in order of creation, each block's shortcut after its two."""
    found: Arrays = {}
    order = ["conv", "block1.conv1", "block1.conv2", "block2.conv1", "block2.conv2", "block2.shortcut",
             "block3.conv1", "block3.conv2", "block3.shortcut"]  # fmt: skip
    norms = ["bn", "block1.bn1", "block1.bn2", "block2.bn1", "block2.bn2", "block3.bn1", "block3.bn2"]
    for i, name in enumerate(order):
        found |= dict(conv(state, name, f"conv2d_{i}" if i else "conv2d"))
    for i, name in enumerate(norms):
        found |= dict(norm(state, name, f"batch_normalization_{i}" if i else "batch_normalization"))
    return found | {"dense/kernel": state["fc.weight"].numpy().T, "dense/bias": state["fc.bias"].numpy()}


def mobilenetv1(state: dict[str, Tensor]) -> Arrays:
    """Return the tensors of Keras applications' MobileNet, whose classifier is a 1x1 convolution."""
    found = dict(conv(state, "conv1", "conv1")) | dict(norm(state, "conv1_bn", "conv1_bn"))
    for n in range(1, 14):
        depthwise = state[f"conv_dw_{n}.weight"].numpy()
        found[f"conv_dw_{n}/depthwise_kernel"] = np.einsum("cmhw->hwcm", depthwise)
        found |= dict(norm(state, f"conv_dw_{n}_bn", f"conv_dw_{n}_bn"))
        found |= dict(conv(state, f"conv_pw_{n}", f"conv_pw_{n}"))
        found |= dict(norm(state, f"conv_pw_{n}_bn", f"conv_pw_{n}_bn"))
    found["conv_preds/kernel"] = state["classifier.weight"].numpy().T[None, None]
    return found | {"conv_preds/bias": state["classifier.bias"].numpy()}


def h5(arrays: Arrays, *, whole_model: bool = False) -> bytes:
    """Return ``save_weights`` of Keras, ``layer/layer/kernel:0``, or ``save``: the same below ``model_weights``."""
    import h5py

    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        root = file.create_group("model_weights") if whole_model else file
        root.attrs["backend"] = "tensorflow"
        for name, array in arrays.items():
            layer, parameter = name.split("/")
            root.create_dataset(f"{layer}/{layer}/{parameter}:0", data=array)
        root.create_group("flatten")  # a layer without weights has an empty group
        if whole_model:
            file.create_dataset("optimizer_weights/Adam/conv2d/kernel/m:0", data=np.zeros((3, 3, 3, 16)))
    return buffer.getvalue()
