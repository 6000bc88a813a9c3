"""The model card of a checkpoint: Markdown with hub front matter, every number from the record and the config."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_LIBRARY = "lowbit-zoo"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+\Z")
_WEIGHTED = ("conv2d", "linear")
_NAMED = 8  # layers of a group that a table names
_LEARNED = ("reconstruct", "adaround", "distill")
_ROLE = {"input": "network input", "add": "residual adds", "mul": "products", "cat": "concatenations", "mean": "pools",
         "avg_pool": "pools", "table": "table activations",
         "requantize": "requantized for layers"}  # fmt: skip
_ARITHMETIC = {
    "tflite": "TFLite's int8 arithmetic: a 32-bit multiplier and a shift, rounded twice",
    "float32": "float32 requantization, as in ONNX Runtime's and XNNPACK's integer kernels",
}


@dataclass(frozen=True)
class Published:
    """What the card of a published checkpoint says besides: hub ids, the version, and what ``timm/`` reaches.

    ``base_model`` is the float parent's repository or "", ``timm_top1`` in percent or None where there is no ``timm/``.
    """

    repo: str
    tag: str
    datasets: tuple[str, ...] = ()
    base_model: str = ""
    timm_top1: float | None = None


def render_card(
    record_fields: Mapping[str, Any], config: Mapping[str, Any], files: Mapping[str, str] | None = None,
    hub: Published | None = None,
) -> str:  # fmt: skip
    """Return the card's text.

    ``record_fields`` is ``Record.to_dict()``. Of ``config`` are read, all but ``nodes`` optional: ``nodes`` (each with
    ``name``, ``op``, ``inputs``, ``out.bits``, ``weight.bits``), ``preprocess``, ``license``, ``datasets`` (hub ids).
    ``files`` maps further file names to their sha256. ``hub`` adds what only a published checkpoint has. The same
    arguments give the same bytes.
    """
    r = record_fields
    parts = [
        _front_matter(r, config, hub),
        f"# {r['recipe']}\n\n{r['model']} at {r['bits']}{_words(r['bits'])}, made by the recipe `{r['recipe']}` of "
        f"{_LIBRARY}.",
        _accuracy(r),
        _load(f"{hub.repo}@{hub.tag}" if hub else r["recipe"]),
        *([_timm(r, hub)] if hub else []),
        "## What is quantized\n\n" + _quantized(r, config),
        "## Size\n\n"
        f"`model.safetensors`: {r['weights_bytes']:,} bytes, {r['float_bytes'] / r['weights_bytes']:.2f} times smaller "
        f"than the float weights ({r['float_bytes']:,} bytes)." + _cost(r),
        _making(r, config),
        _limits(r),
        *_log(r),
        _licence(r, config),
        _hashes(r, files or {}),
    ]
    return "\n\n".join(parts) + "\n"


def render_unmeasured(config: Mapping[str, Any], *, recipe: str, images: int, preprocess: bool) -> str:
    """Return the card of a network that ``zoo.quantize`` made: no number that was not measured.

    ``config`` is config.json with its ``nodes``, ``images`` the number of calibration images; ``preprocess`` says
    whether the maker stated the preprocessing.
    """
    widths = sorted({n["weight"]["bits"] for n in config["nodes"] if n.get("weight")})
    tags = [*(f"int{b}" for b in widths), "quantized"]
    doing = "is in `config.json`" if preprocess else "was not stated: `.preprocess` leaves pixels in 0..255"
    return "\n\n".join([
        f"---\nlicense: {_q(config['license'])}\nlibrary_name: {_LIBRARY}\npipeline_tag: image-classification\n"
        f"tags: {_list(tags)}\nbase_model_relation: quantized\n---",
        f"# {config['architecture']}, quantized\n\nMade by `zoo.quantize` with the recipe `{recipe}` and "
        f"{images:,} calibration images. Its accuracy was not measured.",
        "## Load\n\n```python\nimport zoo\n\nnet = zoo.load(FOLDER, integer=True)  # the path of this folder\n"
        f"logits = net(net.preprocess(image)[None])  # a PIL image or a uint8 array [H, W, C]\n```\n\n"
        f"The preprocessing {doing}.",
        "## What is quantized\n\n" + _quantized(config, config),
    ]) + "\n"  # fmt: skip


def _front_matter(r: Mapping[str, Any], config: Mapping[str, Any], hub: Published | None) -> str:
    nodes = config["nodes"]
    widths = sorted({n["weight"]["bits"] for n in nodes if n.get("weight")})
    steps = [_step_name(s) for s in r["steps"]]
    learned = [s for s in steps if s in _LEARNED]
    tags = [*(f"int{b}" for b in widths), r["bits"].lower(), "qat" if "train" in steps else "ptq", *learned]
    data = r["data"]
    # the hub knows licences by their identifier in lower case
    licence = str(config.get("license", "apache-2.0"))
    lines = [f"license: {_q(licence.lower() if hub else licence)}", f"library_name: {_LIBRARY}"]
    lines += ["pipeline_tag: image-classification", f"tags: {_list([*dict.fromkeys(tags), 'quantized'])}"]
    datasets = (hub.datasets if hub else ()) or config.get("datasets")
    if datasets:
        lines.append(f"datasets: {_list(datasets)}")
    base = (hub.base_model if hub else "") or r["parent"]["source"]
    if _HUB_ID.match(base):
        lines.append(f"base_model: {_list([base])}")
    lines += [
        "base_model_relation: quantized",
        "metrics: [accuracy]",
        "model-index:",
        f"- name: {_q(r['recipe'])}",
        "  results:",
        "  - task: {type: image-classification}",
        f"    dataset: {{type: {_q(data['name'])}, name: {_q(data['name'])}, split: {_q(data['subset'])}, "
        f"revision: {_q(data['fingerprint'])}}}",
        "    metrics:",
        f"    - {{type: accuracy, name: top-1 (%), value: {r['top1']:.4f}, "
        f"args: {{n: {data['n']}, seeds: [{r['seed']}]}}}}",
    ]
    return "---\n" + "\n".join(lines) + "\n---"


def _accuracy(r: Mapping[str, Any]) -> str:
    low, high = r["drop_interval"]
    data = r["data"]
    return (
        "## Accuracy\n\n"
        f"Top-1 on {data['n']:,} images of {data['name']} (subset: {data['subset']}), all three on the same images.\n\n"
        "| network | top-1 (%) | against float (points) |\n|---|---:|---:|\n"
        f"| float parent | {r['float_top1']:.2f} | |\n"
        f"| this one, integers only ({r['semantics']}) | **{r['top1']:.2f}** | {0.0 - r['drop']:+.2f} |\n"
        f"| this one, fake-quantized | {r['top1_fake']:.2f} | {r['top1_fake'] - r['float_top1']:+.2f} |\n\n"
        f"Drop {r['drop']:.2f} points, paired 95 % interval [{low:.2f}, {high:.2f}]. The integer and the "
        f"fake-quantized network choose the same class on {r['agreement']:.2f} % of the images."
    )


def _load(name: str) -> str:
    return (
        "## Load\n\n```python\nimport zoo\n\n"
        f'net = zoo.load("{name}", integer=True)  # or the path of this folder\n'
        "logits = net(net.preprocess(image)[None])  # a PIL image or a uint8 array [H, W, C]\n```"
    )


def _timm(r: Mapping[str, Any], hub: Published) -> str:
    refused = "## With timm\n\nPlain timm refuses this repository, whose weights are packed codes."
    if hub.timm_top1 is None:
        return refused
    return (
        f"{refused} The folder `timm/` holds the same weights multiplied out to float, without the quantization of the "
        f"activations: {hub.timm_top1:.2f} % top-1 on the {r['data']['n']:,} images above.\n\n```sh\n"
        f'hf download {hub.repo} --revision {hub.tag} --include "timm/*" --local-dir {r["recipe"]}\n```\n\n'
        f'```python\nnet = timm.create_model("local-dir:{r["recipe"]}/timm", pretrained=True)\n```'
    )


def _quantized(r: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    nodes: Sequence[Mapping[str, Any]] = config["nodes"]
    bits: dict[str, int] = {}
    groups: dict[tuple[str, int, int, int], list[str]] = {}
    for node in nodes:
        # what has no format of its own passes its input's on
        bits[node["name"]] = node["out"]["bits"] if node.get("out") else bits[node["inputs"][0]]
        if node["op"] in _WEIGHTED:
            kind = "fully connected" if node["op"] == "linear" else _conv(node)
            read = bits[node["inputs"][0]]
            groups.setdefault((kind, node["weight"]["bits"], read, node["out"]["bits"]), []).append(node["name"])
    rows = [
        f"| {kind} ({_which(names)}) | {len(names)} | {' | '.join(map(str, widths))} |"
        for (kind, *widths), names in sorted(groups.items())
    ]
    table = "| layers | count | weight bits | input bits | output bits |\n|---|---:|---:|---:|---:|\n" + "\n".join(rows)
    last = nodes[-1]["name"]
    tensors: dict[str, set[int]] = {}
    for node in nodes:
        if node["op"] in _ROLE and node.get("out") and node["name"] != last:
            tensors.setdefault(_ROLE[node["op"]], set()).add(node["out"]["bits"])
    if nodes[-1].get("out"):
        tensors["logits"] = {nodes[-1]["out"]["bits"]}
    said = [f"- {role}: {' and '.join(map(str, sorted(bits)))} bits" for role, bits in tensors.items()]
    arithmetic = _ARITHMETIC.get(r["semantics"], "see the project's docs/semantics.md")
    return (
        f"{table}\n\nBiases are 32-bit integers. Besides the outputs of the layers above:\n\n"
        + "\n".join(said)
        + f"\n\nNothing is float between the input codes and the logits. Arithmetic `{r['semantics']}`: {arithmetic}."
    )


def _conv(node: Mapping[str, Any]) -> str:
    groups = node.get("attrs", {}).get("groups", 1)
    return "convolution" if groups == 1 else "grouped or depthwise convolution"


def _which(names: Sequence[str]) -> str:
    said = [f"`{n}`" for n in names]
    return ", ".join(said if len(said) <= _NAMED else [*said[: _NAMED - 1], "...", said[-1]])


def _cost(r: Mapping[str, Any]) -> str:
    if not r.get("macs"):
        return ""
    return (
        f"\n\nOne image takes {r['macs']:,} multiply-accumulates. At most {r['activation_bytes']:,} bytes of "
        "activations live at once, each tensor packed to 2, 4, 8 or 16 bits and nodes in the order of `config.json`; "
        "an engine that keeps a byte per code needs more, one that computes in place or in tiles less."
    )


def _making(r: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    calibration, parent, git = r["calibration"], r["parent"], r["git"]
    lines = [
        f"- command: `{r['command']}` (seed {r['seed']}, budget `{r['budget']}`)",
        f"- steps: {', '.join(f'`{s}`' for s in r['steps'])}",
        f"- images given to the steps: {calibration['n']:,} of {calibration['name']}, fingerprint "
        f"`{calibration['fingerprint']}`; none of them is among the test images",
        f"- float parent: {parent['source']}, sha256 `{parent['sha256']}`",
        f"- test images: fingerprint `{r['data']['fingerprint']}`",
        f"- code: commit `{git['commit']}`{' with local changes' if git['dirty'] else ''}, "
        + ", ".join(f"{k} {v}" for k, v in sorted(r["versions"].items())),
        f"- time: {sum(r['seconds'].values()):.0f} s on {r['machine'].get('accelerator') or r['machine']['cpu']}, "
        f"{r['machine']['threads']} thread{'s' * (r['machine']['threads'] != 1)}",
    ]
    if config.get("preprocess"):
        lines.append(f"- preprocessing: `{json.dumps(config['preprocess'], sort_keys=True)}`")
    return "## How it was made\n\n" + "\n".join(lines)


def _limits(r: Mapping[str, Any]) -> str:
    lines = [
        f"- The accuracy holds for the images named above ({r['data']['name']}) and for no others.",
        f"- These weights are those of seed {r['seed']}; the interval covers the choice of test images, not of the "
        "seed. The project's table says what other seeds reach, where there are some.",
        "- The integers are the same on any machine; the float network that they came from is not.",
    ]
    return "## Limits\n\n" + "\n".join(lines)


def _log(r: Mapping[str, Any]) -> list[str]:
    return ["## What the steps noted\n\n" + "\n".join(f"- {note}" for note in r["notes"])] if r["notes"] else []


def _licence(r: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    return (
        f"## Licence\n\n{config.get('license', 'apache-2.0')}, as the float parent's weights "
        f"({r['parent']['source']}). The terms of the images ({r['data']['name']}, {r['calibration']['name']}) are "
        "their publisher's; none of them is in this folder."
    )


def _hashes(r: Mapping[str, Any], files: Mapping[str, str]) -> str:
    every = {**files, "model.safetensors": r["artifact_sha256"]}
    rows = "\n".join(f"| `{name}` | `{every[name]}` |" for name in sorted(every))
    return f"## sha256\n\n| file | sha256 |\n|---|---|\n{rows}\n\nRecipe: `{r['recipe_sha256']}`."


def _step_name(step: str) -> str:
    # A step with settings is written as the JSON object {name: settings}.
    return str(next(iter(json.loads(step)))) if step.startswith("{") else step


def _words(bits: str) -> str:
    match = re.match(r"W(\d+)A(\d+)\Z", bits)
    if not match:
        return ""
    return (
        f" ({match[1]}-bit weights and {match[2]}-bit activations in what layers multiply, with the exceptions named "
        "below)"
    )


def _q(text: object) -> str:
    # A JSON string is a YAML string.
    return json.dumps(str(text), ensure_ascii=False)


def _list(items: Sequence[object]) -> str:
    return "[" + ", ".join(map(_q, items)) + "]"
