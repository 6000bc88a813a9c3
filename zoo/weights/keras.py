"""Keras weights in our layout: HWIO kernels to OIHW, depthwise HWCM to (CM)1HW, dense [in, out] to [out, in]."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.errors import ModelError

_LIMIT = 2**28  # values of one tensor: 1 GiB


def resnet8(tensors: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """Convert the MLPerf Tiny ResNet8; its layers are numbered in the order in which Keras made them."""
    keras = _Layers(tensors, where)
    convs = ["conv", *(f"block{b}.{c}" for b in (1, 2, 3) for c in ("conv1", "conv2", "shortcut"))]
    convs.remove("block1.shortcut")  # stride 1: an identity
    for i, target in enumerate(convs):
        keras.conv(_numbered("conv2d", i), target, bias=True)
    norms = [name.replace("conv", "bn") for name in convs if "shortcut" not in name]
    for i, target in enumerate(norms):
        keras.norm(_numbered("batch_normalization", i), target)
    keras.dense("dense", "fc")
    return keras.done()


def mobilenetv1(tensors: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """Convert Keras applications' MobileNetV1; its classifier, a 1x1 convolution there, is linear here."""
    keras = _Layers(tensors, where)
    for name in ["conv1", *(f"conv_{kind}_{n}" for n in range(1, 14) for kind in ("dw", "pw"))]:
        keras.conv(name, name, bias=False)
        keras.norm(f"{name}_bn", f"{name}_bn")
    keras.dense("conv_preds", "classifier")
    return keras.done()


def read_h5(data: bytes, where: str) -> dict[str, Tensor]:
    """Return ``{layer/parameter: tensor}`` of a Keras ``.h5`` file: saved weights, or a whole saved model.

    The names are those of the layer groups; the optimizer's state of a whole model is left out. Needs the extra
    ``keras``.
    """
    import io

    try:
        import h5py
    except ImportError:
        raise ModelError(
            f"{where}: Keras files need h5py, which the extra 'keras' brings: pip install 'lowbit-zoo[keras]'"
        ) from None
    found: dict[str, Tensor] = {}
    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            layers = file.get("model_weights", file)

            def visit(path: str, item: Any) -> None:  # follows no link, so it never leaves the file
                if isinstance(item, h5py.Dataset):
                    if item.size > _LIMIT:  # unwritten values take no room in a file
                        raise ModelError(f"{where}: {path!r} claims {item.size} values; this is no file of this zoo")
                    # group of the layer / scopes of the graph it was saved from / parameter:0
                    layer, *_, parameter = path.split("/")
                    name = f"{layer}/{parameter.removesuffix(':0')}"
                    if name in found:
                        raise ModelError(f"{where}: holds {name!r} twice; this is not a Keras image classifier")
                    found[name] = torch.from_numpy(item[()].astype("float32"))

            layers.visititems(visit)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ModelError(f"{where}: not a readable Keras .h5 file ({reason}); fetch it again") from None
    return found


def _numbered(name: str, i: int) -> str:
    return f"{name}_{i}" if i else name


class _Layers:
    """Gives tensors away one by one, so that none is forgotten and none is used twice."""

    def __init__(self, tensors: dict[str, Tensor], where: str) -> None:
        self.left = dict(tensors)
        self.where = where
        self.state: dict[str, Tensor] = {}

    def take(self, name: str, ndim: int) -> Tensor:
        if name not in self.left:
            raise ModelError(f"{self.where}: Keras tensor {name!r} is missing; this is another network's file")
        tensor = self.left.pop(name)
        if tensor.ndim != ndim:
            raise ModelError(
                f"{self.where}: Keras tensor {name!r} has shape {list(tensor.shape)}, expected {ndim} axes"
            )
        return tensor

    def conv(self, name: str, target: str, *, bias: bool) -> None:
        if f"{name}/depthwise_kernel" in self.left:
            kernel = self.take(f"{name}/depthwise_kernel", 4)
            weight = kernel.permute(2, 3, 0, 1).flatten(0, 1).unsqueeze(1)
        else:
            weight = self.take(f"{name}/kernel", 4).permute(3, 2, 0, 1)
        self.state[f"{target}.weight"] = weight.contiguous()
        if bias:
            self.state[f"{target}.bias"] = self.take(f"{name}/bias", 1)

    def dense(self, name: str, target: str) -> None:
        kernel = self.left.get(f"{name}/kernel")
        if kernel is not None and kernel.ndim == 4 and list(kernel.shape[:2]) == [1, 1]:
            self.left[f"{name}/kernel"] = kernel[0, 0]
        self.state[f"{target}.weight"] = self.take(f"{name}/kernel", 2).t().contiguous()
        self.state[f"{target}.bias"] = self.take(f"{name}/bias", 1)

    def norm(self, name: str, target: str) -> None:
        pairs = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
        for ours, theirs in pairs.items():
            self.state[f"{target}.{ours}"] = self.take(f"{name}/{theirs}", 1)

    def done(self) -> dict[str, Tensor]:
        if self.left:
            raise ModelError(f"{self.where}: Keras tensor {min(self.left)!r} has no place in this network")
        return self.state
