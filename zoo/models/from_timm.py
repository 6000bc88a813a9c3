"""Any timm classifier by name."""

from __future__ import annotations

from typing import Any

from torch import nn

from zoo.errors import ModelError, suggest

# They read weights, pickled ones too, behind the sources that we hash.
_LOADING = {"checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}


def build(name: str, **args: Any) -> nn.Module:
    """Return ``timm.create_model(name, pretrained=False, **args)``; an unknown name raises ModelError.

    So do arguments that load weights.
    """
    import timm

    if taken := sorted(_LOADING & set(args)):
        raise ModelError(f"model.args.{taken[0]}: weights come from model.weights, where their hash is checked")
    if name not in timm.list_models():
        near = [m for m in timm.list_models() if m[:4] == name[:4]] or timm.list_models()
        raise ModelError(f"model.args.name: timm has no model {name!r}{suggest(name, near[:12])}")
    try:
        model: nn.Module = timm.create_model(name, pretrained=False, **args)
    except TypeError as error:
        raise ModelError(f"model.args: {error}") from None
    return model
