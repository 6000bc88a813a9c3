"""Any timm classifier by name."""

from __future__ import annotations

from typing import Any

from torch import nn

from zoo.errors import ModelError, suggest


def build(name: str, **args: Any) -> nn.Module:
    """Return ``timm.create_model(name, pretrained=False, **args)``; an unknown name raises ModelError."""
    import timm

    if name not in timm.list_models():
        near = [m for m in timm.list_models() if m[:4] == name[:4]] or timm.list_models()
        raise ModelError(f"model.args.name: timm has no model {name!r}{suggest(name, near[:12])}")
    try:
        model: nn.Module = timm.create_model(name, pretrained=False, **args)
    except TypeError as error:
        raise ModelError(f"model.args: {error}") from None
    return model
