"""A recipe from a file that anyone may have written: plain YAML, nothing that names code or refers to itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zoo.errors import RecipeError

_LIMIT, _DEPTH = 2**20, 32  # bytes; levels of nesting


def read_recipe(path: Path) -> dict[str, Any]:
    """Return the plain mapping of a resolved recipe, such as a checkpoint's ``recipe.yaml``.

    Tags, anchors, aliases, duplicate and non-text keys, deep nesting and more than 1 MiB raise RecipeError, as do a
    missing file and malformed text. ``Recipe.parse`` checks what the fields say.
    """
    try:
        if path.stat().st_size > _LIMIT:
            raise RecipeError(f"{path}: has more than {_LIMIT:,} bytes; this is no recipe")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror or error}); name a recipe's YAML file") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: is not UTF-8 ({error}); name a recipe's YAML file") from None
    return parse_recipe(text, str(path))


def parse_recipe(text: str, where: str) -> dict[str, Any]:
    """Return the mapping of a recipe's text; RecipeError as ``read_recipe``."""
    import yaml

    try:
        depth = 0
        # events come before anything is built: what refers to itself never grows
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
                raise RecipeError(f"{where}: line {event.start_mark.line + 1}: anchors and aliases are not allowed")
            if getattr(event, "tag", None) is not None:
                raise RecipeError(
                    f"{where}: line {event.start_mark.line + 1}: the tag {event.tag[:60]!r} is not allowed"
                )
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEPTH:
                raise RecipeError(f"{where}: line {event.start_mark.line + 1}: more than {_DEPTH} levels deep")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        _refuse_twins(node, where)
        fields = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date or a number that is none
        raise RecipeError(f"{where}: is not readable YAML ({' '.join(str(error).split())[:160]})") from None
    if not isinstance(fields, dict):
        raise RecipeError(f"{where}: expected the fields of a recipe, got {type(fields).__name__}")
    return fields


def _refuse_twins(node: Any, where: str) -> None:
    import yaml

    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_twins(item, where)
    elif isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                raise RecipeError(f"{where}: line {line}: the key {str(key.value)[:60]!r} is not a text")
            if key.value in seen:
                raise RecipeError(f"{where}: line {line}: the key {key.value[:60]!r} occurs twice")
            seen.add(key.value)
            _refuse_twins(value, where)


def yaml_text(fields: dict[str, Any]) -> str:
    """Return the resolved recipe as YAML, in its own order; RecipeError for text that is half an interpolation."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return str(OmegaConf.to_yaml(OmegaConf.create(fields)))
    except OmegaConfBaseException as error:
        reason = " ".join(str(error).split())[:200]
        raise RecipeError(f"recipe: cannot be written as YAML ({reason}); leave ${{ out of its texts") from None
