"""From a ModelConfig to verified tensors, and to a network that holds them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import ModelError
from zoo.resolve import check_arguments, load
from zoo.weights import keras
from zoo.weights._config import ModelConfig, Source
from zoo.weights.sources import Unavailable, fetch, forget, keep, parse

_COUNTER = "num_batches_tracked"  # training bookkeeping: publishers leave it out, inference never reads it


def load_weights(config: ModelConfig, *, offline: bool = False) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the float32 state dict for ``build`` and ``{source, sha256, tensors_sha256}``.

    Sources are tried in order; ``offline`` leaves only files that are here already. Bytes are hashed before they are
    parsed. A network without weights gives an empty dict.

    Raises
    ------
    ModelError: no source has the file (the message lists what was tried), or a file that is here was altered, is cut
    short, or belongs to another network.
    """
    if config.weights is None:
        return {}, {"source": "random initialisation", "sha256": ""}
    tried = []
    for source in config.weights.sources:
        try:
            data, state = _fetch(config, source, offline)
        except Unavailable as reason:
            tried.append(str(reason))
            continue
        keep(source, data)
        digest = hashlib.sha256(data).hexdigest()
        return state, {"source": source.label, "sha256": digest, "tensors_sha256": tensors_sha256(state)}
    raise ModelError(
        f"{config.name}: no float weights: {'; '.join(tried)}; go online, or set ZOO_MIRROR to a folder that holds them"
    )


def build_model(config: ModelConfig, state: Mapping[str, Tensor] | bool = True) -> nn.Module:
    """Return the network in eval mode with these weights, or with ``load_weights(config)``, or (False) random ones.

    An empty mapping stands for random weights too. Loading is strict; ModelError names the first misfit, RecipeError an
    unknown builder or an argument that it does not take.
    """
    if isinstance(state, bool):
        state = load_weights(config)[0] if state else {}
    model = _build(config)
    if state:
        _check_fit(config.name, state, _shapes(model))
        counters = {name: t for name, t in model.state_dict().items() if name.endswith(_COUNTER)}
        model.load_state_dict(counters | dict(state), strict=True)
    return model.eval()


def tensors_sha256(state: Mapping[str, Tensor]) -> str:
    """Return the sha256 over the tensors in order of their names: name, shape, little-endian float32 bytes.

    It does not depend on the file format, so a converted Keras file and a safetensors copy of it agree. BatchNorm's
    step counters are left out.
    """
    digest = hashlib.sha256()
    for name in sorted(n for n in state if not n.endswith(_COUNTER)):
        tensor = state[name].detach().cpu().to(torch.float32).contiguous()
        digest.update(json.dumps([name, list(tensor.shape)]).encode())
        digest.update(tensor.numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def _fetch(config: ModelConfig, source: Source, offline: bool) -> tuple[bytes, dict[str, Tensor]]:
    data = fetch(source, offline=offline)
    try:
        return data, _verified(config, data, source.label)
    except ModelError:
        if not forget(source):
            raise
    data = fetch(source, offline=offline)
    return data, _verified(config, data, source.label)


def _verified(config: ModelConfig, data: bytes, where: str) -> dict[str, Tensor]:
    assert config.weights is not None
    state = _convert(config, parse(data, where), where)
    content = tensors_sha256(state)
    if config.weights.tensors_sha256 not in ("", content):
        raise ModelError(
            f"{config.name}: the tensors of {where} have sha256 {content[:12]}, expected "
            f"{config.weights.tensors_sha256[:12]}; these are other weights than the recipe was made for"
        )
    return state


def find_builder(config: ModelConfig, where: str = "model") -> Any:
    """Return the module of the builder; RecipeError for an unknown one, or arguments it does not take."""
    builder = load("zoo.models", config.builder, f"{where}.builder")
    check_arguments(builder.build, f"{where}.args", **config.args)
    return builder


def _build(config: ModelConfig) -> nn.Module:
    try:
        model: nn.Module = find_builder(config).build(**config.args)
    except (TypeError, ValueError) as error:
        raise ModelError(f"{config.name}: model.args: {' '.join(str(error).split())[:200]}") from None
    return model


def _convert(config: ModelConfig, tensors: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    assert config.weights is not None
    converters: dict[str, Callable[[dict[str, Tensor], str], dict[str, Tensor]]] = {
        "torch": lambda found, _: found,
        "keras_resnet8": keras.resnet8,
        "keras_mobilenetv1": keras.mobilenetv1,
    }
    state = converters[config.weights.layout](tensors, where)
    state = {name: t for name, t in state.items() if not name.endswith(_COUNTER)}
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            raise ModelError(f"{config.name}: {name} of {where} holds {tensor.dtype}, expected float32")
        state[name] = tensor.to(torch.float32).contiguous()
    with torch.device("meta"):  # shapes only: nothing is drawn from the random generator
        expected = _shapes(_build(config))
    _check_fit(f"{config.name}: {where}", state, expected)
    return state


def _shapes(model: nn.Module) -> dict[str, list[int]]:
    return {name: list(t.shape) for name, t in model.state_dict().items() if not name.endswith(_COUNTER)}


def _check_fit(where: str, state: Mapping[str, Tensor], expected: dict[str, list[int]]) -> None:
    hint = "these weights belong to another network or other model.args"
    found = {name for name in state if not name.endswith(_COUNTER)}
    if missing := sorted(expected.keys() - found):
        raise ModelError(f"{where}: tensor {missing[0]!r} is missing (and {len(missing) - 1} more); {hint}")
    if extra := sorted(found - expected.keys()):
        raise ModelError(f"{where}: tensor {extra[0]!r} has no place (and {len(extra) - 1} more); {hint}")
    for name, shape in expected.items():
        if list(state[name].shape) != shape:
            raise ModelError(f"{where}: {name} has shape {list(state[name].shape)}, the network needs {shape}; {hint}")
