"""From the words of a command line to a resolved recipe: the only reader of the Hydra files in ``recipes``."""

from __future__ import annotations

import re
from contextlib import nullcontext
from typing import Any

from zoo.errors import RecipeError, suggest
from zoo.paths import recipes_dir

_UNKNOWN = re.compile(r"Could not override '([^']+)'")
_NUMBERED = ("name a step by its place, counted from 0, such as steps.2.train.lr=0.01, with a + before it for a field "
             "that the recipe's files leave out")  # fmt: skip


def names(group: str = "recipe") -> list[str]:
    """Return the shipped YAML names of a group."""
    return sorted(p.stem for p in (recipes_dir() / group).glob("*.yaml"))


def check_names(key: str, value: str) -> None:
    """Raise RecipeError for a recipe, model, data set or format that is not there."""
    if key in ("recipe", "model", "data", "quant") and value not in names(key):
        raise RecipeError(f"{key} {value!r} is unknown{suggest(value, names(key))}")


def compose(overrides: list[str]) -> dict[str, Any]:
    """Compose the Hydra configuration of some overrides into plain values."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        # a job of a sweep has Hydra running, on the same folder
        running = GlobalHydra.instance().is_initialized()
        place = {"config_dir": str(recipes_dir()), "version_base": "1.3"}
        with nullcontext() if running else initialize_config_dir(**place):
            config = hydra_compose("config", overrides=overrides)
        missing = sorted(OmegaConf.missing_keys(config))
        if missing:
            raise RecipeError(f"recipe: {missing[0]} is not set; name a recipe: recipe={names()[0]}")
        fields = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        first = " ".join(str(error).split())
        unknown = _UNKNOWN.match(first)
        if unknown:
            key = unknown[1]
            _refuse_bare_steps(key)
            near = suggest(key.rpartition(".")[2], _beside(key, overrides))
            raise RecipeError(
                f"{key}: no such field{near}; a field that the recipe's files leave out is added by +{key}=VALUE"
            ) from None
        cause = error.__cause__
        detail = f" ({' '.join(str(cause).split())[:160]})" if cause else ""
        raise RecipeError(f"recipe: {first[:200]}{detail}") from None
    except TypeError as error:
        raise RecipeError(f"recipe: {' '.join(str(error).split())[:200]}; {_NUMBERED}") from None
    assert isinstance(fields, dict)
    return {str(k): v for k, v in fields.items()}


def _refuse_bare_steps(key: str) -> None:
    from zoo import resolve

    if key.partition(".")[0] in resolve.names("zoo.steps"):
        raise RecipeError(f"{key}: is a field of a step; {_NUMBERED}")


def _beside(key: str, overrides: list[str]) -> list[str]:
    """Return the fields that could have been meant by one that is not there."""
    from zoo.recipe import Recipe

    *parents, _ = key.split(".")
    if not parents:
        return ["recipe", *Recipe.__dataclass_fields__]
    try:
        found: Any = compose([o for o in overrides if o.partition("=")[0] != key])
        for parent in parents:
            found = found[int(parent) if isinstance(found, list) else parent]
    except (RecipeError, LookupError, TypeError, ValueError):
        return []
    return [str(name) for name in found] if isinstance(found, dict) else []
