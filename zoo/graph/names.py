"""Which names a module of a network may have: torch.fx writes the forward as Python with them in it."""

from __future__ import annotations

import keyword

from torch import fx, nn

_RESERVED = frozenset({*dir(fx.GraphModule(nn.Module(), fx.Graph())), *keyword.kwlist, "self"})


def plain(name: str) -> bool:
    """Tell whether a dotted name consists of letters, digits and underscores, and of nothing that torch.fx needs."""
    parts = name.split(".")
    return len(name) < 200 and all(
        p.replace("_", "a").isalnum() and p.isascii() and p not in _RESERVED and not p.startswith("__") for p in parts
    )
