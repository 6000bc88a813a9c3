"""The fields of config.json that are not nodes. Like the codec, it trusts nothing."""

from __future__ import annotations

from typing import Any

from zoo.errors import ArtifactError, DataError
from zoo.preprocess import Preprocess
from zoo.resolve import names

FORMAT_VERSION = 2
_TEXTS = ("name", "architecture", "license", "semantics")
_MAPPINGS = ("preprocess", "quantization_config", "provenance")
_FIELDS = {*_TEXTS, *_MAPPINGS, "format_version", "input_shape", "nodes", "labels", "num_classes"}
_MAX_SIDE = 4096


def check_config(value: Any, where: str) -> dict[str, Any]:
    """Return the mapping if its version, fields and their types are right; ArtifactError names the first that is not.

    ``nodes`` and ``input_shape`` are left to ``codec.decode``.
    """
    config: dict[str, Any] = value if isinstance(value, dict) else {}
    version = config.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        old = type(version) is int and version < FORMAT_VERSION
        remedy = "make the checkpoint again by its recipe" if old else "upgrade the package"
        raise ArtifactError(
            f"{where}: format_version {version!r} is unknown, this version reads {FORMAT_VERSION}; {remedy}"
        )
    missing, extra = sorted(_FIELDS - set(config)), sorted(set(config) - _FIELDS)
    if missing or extra:
        raise ArtifactError(f"{where}: field {(missing or extra)[0]!r} is {'missing' if missing else 'unknown'}; "
                            "fetch the checkpoint again")  # fmt: skip
    for key in _TEXTS:
        if not isinstance(config[key], str):
            raise ArtifactError(f"{where}: {key} must be a text; fetch the checkpoint again")
    for key in _MAPPINGS:
        if not isinstance(config[key], dict):
            raise ArtifactError(f"{where}: {key} must be a mapping; fetch the checkpoint again")
    if config["semantics"] not in names("zoo.integer.semantics"):
        raise ArtifactError(f"{where}: semantics {config['semantics']!r} is unknown; upgrade the package")
    labels, classes = config["labels"], config["num_classes"]
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ArtifactError(f"{where}: labels must be a list of texts; fetch the checkpoint again")
    if type(classes) is not int or (labels and len(labels) != classes):
        raise ArtifactError(f"{where}: num_classes must be the number of labels, {len(labels)}; correct either of them")
    return config


def check_preprocess(config: dict[str, Any], where: str) -> None:
    """Raise ArtifactError where preprocessing cannot make pictures of ``input_shape``."""
    try:
        made = Preprocess.from_dict(config["preprocess"])
        sizes = [*made.size] if made.resize is None else [*made.size, made.resize]
    except (DataError, TypeError, AttributeError, OverflowError) as error:
        text = str(error)
        raise ArtifactError(f"{where}: {text if text.startswith('preprocess') else f'preprocess: {text}'}; "
                            "fetch the checkpoint again") from None  # fmt: skip
    if any(size > _MAX_SIDE for size in sizes):
        raise ArtifactError(f"{where}: preprocess: sizes must be integers up to {_MAX_SIDE}, got {sizes}")
    if [made.channels, *made.size] != config["input_shape"]:
        raise ArtifactError(
            f"{where}: preprocess makes {[made.channels, *made.size]}, input_shape is {config['input_shape']}; "
            "make them equal"
        )
