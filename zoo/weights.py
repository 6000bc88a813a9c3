"""Float weights: named sources with sha256, and converters from other layouts."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from zoo.errors import DataError, ModelError
from zoo.resolve import load


@dataclass(frozen=True)
class Source:
    """Where a weight file may come from. ``package``: below the results folder; ``mirror``: below $ZOO_MIRROR."""

    kind: Literal["mirror", "package", "url", "hub"]
    sha256: str
    path: str = ""
    url: str = ""
    repo_id: str = ""
    revision: str = ""


@dataclass(frozen=True)
class WeightConfig:
    """``layout``: ``torch`` (our own state dict) or a converter's name; ``sources`` are tried in order."""

    sources: tuple[Source, ...]
    layout: Literal["torch", "keras_resnet8", "keras_mobilenetv1"] = "torch"


@dataclass(frozen=True)
class ModelConfig:
    """A network with its weights and preprocessing: ``recipes/model/NAME.yaml``."""

    name: str
    builder: str
    preprocess: dict[str, Any]
    args: dict[str, Any] = field(default_factory=dict)
    labels: str | None = None
    license: str = "unknown"
    description: str = ""
    weights: WeightConfig | None = None


def load_weights(config: ModelConfig) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the state dict for ``build`` and ``{source, sha256}``; without weights, an empty dict.

    A file that is there with another sha256 is refused, not skipped. ModelError lists what was tried.
    """
    if config.weights is None:
        return {}, {"source": "random initialisation", "sha256": ""}
    tried = []
    for source in config.weights.sources:
        path = _find(source)
        if isinstance(path, str):
            tried.append(path)
            continue
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != source.sha256:
            raise ModelError(f"{path}: sha256 is {digest[:12]}, expected {source.sha256[:12]}; fetch the file again")
        tensors = _read(path)
        label = source.url or (f"{source.repo_id}@{source.revision}/{source.path}" if source.repo_id else source.path)
        return _LAYOUTS[config.weights.layout](tensors), {"source": f"{source.kind}:{label}", "sha256": digest}
    raise ModelError(f"{config.name}: no float weights; tried {'; '.join(tried)}. Set ZOO_MIRROR or go online")


def _find(source: Source) -> Path | str:
    from zoo.data._cache import cache_dir
    from zoo.data._sources import mirror
    from zoo.download import fetch
    from zoo.paths import results_dir

    if source.kind == "mirror":
        return mirror(source.path) or f"mirror {source.path} (absent)"
    if source.kind == "package":
        path = results_dir() / source.path
        return path if path.is_file() else f"package {source.path} (absent)"
    try:
        if source.kind == "url":
            return fetch(source.url, source.sha256, cache_dir() / "downloads" / source.url.rsplit("/", 1)[-1])
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(source.repo_id, source.path, revision=source.revision or None))
    except DataError as error:
        return str(error)
    except Exception as error:
        return f"hub {source.repo_id} ({type(error).__name__})"


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix in (".h5", ".hdf5"):
        return _read_h5(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path}: not a readable safetensors file ({error}); fetch it again") from None


def _read_h5(path: Path) -> dict[str, Tensor]:
    try:
        import h5py
    except ImportError:
        raise ModelError(f"{path}: reading Keras files needs the extra 'keras': pip install lowbit-zoo[keras]") from None
    found: dict[str, Tensor] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            parts = name.replace(":0", "").split("/")
            found["/".join(parts[-2:])] = torch.from_numpy(item[()].copy())

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return found


class _Keras:
    """Takes Keras tensors one by one, so that a forgotten or missing one is noticed."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.left = dict(tensors)
        self.state: dict[str, Tensor] = {}

    def take(self, name: str) -> Tensor:
        if name not in self.left:
            raise ModelError(f"keras weights: tensor {name!r} is missing; this is another network's file")
        return self.left.pop(name)

    def conv(self, name: str, target: str, *, bias: bool, depthwise: bool = False) -> None:
        kernel = self.take(f"{name}/depthwise_kernel" if depthwise else f"{name}/kernel")
        order = (2, 3, 0, 1) if depthwise else (3, 2, 0, 1)
        self.state[f"{target}.weight"] = kernel.permute(*order).contiguous()
        if bias:
            self.state[f"{target}.bias"] = self.take(f"{name}/bias")

    def norm(self, name: str, target: str) -> None:
        pairs = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
        for ours, theirs in pairs.items():
            self.state[f"{target}.{ours}"] = self.take(f"{name}/{theirs}")
        self.state[f"{target}.num_batches_tracked"] = torch.tensor(0)

    def done(self) -> dict[str, Tensor]:
        if self.left:
            raise ModelError(f"keras weights: tensor {sorted(self.left)[0]!r} has no place in this network")
        return self.state


def keras_resnet8(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert the MLPerf Tiny ResNet8; layers are numbered in the order Keras made them."""
    keras = _Keras(tensors)
    convs = ["conv", "block1.conv1", "block1.conv2", "block2.conv1", "block2.conv2", "block2.shortcut", "block3.conv1",
             "block3.conv2", "block3.shortcut"]  # fmt: skip
    for i, target in enumerate(convs):
        keras.conv(f"conv2d_{i}" if i else "conv2d", target, bias=True)
    norms = [c.replace("conv", "bn") for c in convs if "shortcut" not in c]
    for i, target in enumerate(norms):
        keras.norm(f"batch_normalization_{i}" if i else "batch_normalization", target)
    keras.state["fc.weight"] = keras.take("dense/kernel").t().contiguous()
    keras.state["fc.bias"] = keras.take("dense/bias")
    return keras.done()


def keras_mobilenetv1(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert Keras applications' MobileNetV1; its classifier is a 1x1 convolution there and linear here."""
    keras = _Keras(tensors)
    layers = ["conv1"] + [f"conv_{k}_{n}" for n in range(1, 14) for k in ("dw", "pw")]
    for name in layers:
        keras.conv(name, name, bias=False, depthwise="_dw_" in name)
        keras.norm(f"{name}_bn", f"{name}_bn")
    keras.state["classifier.weight"] = keras.take("conv_preds/kernel").flatten(0, 2).t().contiguous()
    keras.state["classifier.bias"] = keras.take("conv_preds/bias")
    return keras.done()


_LAYOUTS = {"torch": lambda t: t, "keras_resnet8": keras_resnet8, "keras_mobilenetv1": keras_mobilenetv1}


def build_model(config: ModelConfig, state: dict[str, Tensor]) -> nn.Module:
    """Return the network in eval mode with these weights, loaded strictly; ModelError names the first misfit."""
    builder = load("zoo.models", config.builder, "model.builder")
    try:
        model: nn.Module = builder.build(**config.args)
    except TypeError as error:
        raise ModelError(f"model.args: {error}") from None
    if state:
        try:
            model.load_state_dict(state, strict=True)
        except RuntimeError as error:
            text = re.sub(r"\s+", " ", str(error))
            raise ModelError(f"{config.name}: the weights do not fit the network ({text[:160]})") from None
    return model.eval()
