"""The weights multiplied out to float, in the form that timm loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from zoo.artifact import files
from zoo.artifact.checkpoint import Checkpoint, tensor_bytes
from zoo.errors import HubError
from zoo.graph.ops import activation_name
from zoo.graph.trace import trace
from zoo.integer.program import Program, centred_weight
from zoo.recipe import Recipe
from zoo.resolve import build
from zoo.results import dump
from zoo.weights import ModelConfig, build_model

_BUILDER = "from_timm"


def write_timm(folder: Path, recipe: Recipe, read: Checkpoint) -> nn.Module:
    """Write ``model.safetensors``, ``config.json`` and their manifest, and return the network as timm loads it back.

    Weights are ``(q - z) s_w``, biases ``b s_x s_w``; what batch normalisation there was now only adds the bias.
    Activations stay float. Raises HubError for a network that is not timm's, or that steps gave another structure.
    """
    config = build(ModelConfig, recipe.model, "model")
    if config.builder != _BUILDER:
        raise HubError(f"{recipe.name}: timm=true needs a network of timm, this is {config.builder!r}; leave it out")
    model = build_model(config, False)
    state = dequantized(model, read.program, recipe.name)
    size = [*read.program.input_shape]
    args = {k: v for k, v in config.args.items() if k != "name"}
    mean, std = ([round(v / 255, 10) for v in read.config["preprocess"][key]] for key in ("mean", "std"))
    resize = read.config["preprocess"].get("resize")
    described = {
        "architecture": config.args["name"], "num_classes": read.config["num_classes"], "model_args": args,
        "pretrained_cfg": {
            "input_size": size, "mean": mean, "std": std, "fixed_input_size": False,
            "interpolation": read.config["preprocess"].get("interpolation", "bilinear"),
            "crop_pct": size[-1] / resize if resize else 1.0, "license": read.config["license"].lower(),
        },
    }  # fmt: skip

    def fill(temporary: Path) -> None:
        (temporary / "model.safetensors").write_bytes(tensor_bytes(state))
        (temporary / "config.json").write_text(dump(described, "config.json", indent=1), encoding="utf-8")

    files.write_folder(folder, fill, "set TMPDIR to another place")
    import timm

    net: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True)
    return net.eval()


@torch.no_grad()
def dequantized(model: nn.Module, program: Program, name: str) -> dict[str, Tensor]:
    """Return a state dict of the float network that computes with the integer network's weights and biases."""
    graph = trace(model, torch.zeros(1, *program.input_shape))
    state = {key: value.clone().contiguous() for key, value in model.state_dict().items()}
    norms, acts = _after(graph)
    weighted = {node.name: node for node in program.nodes if node.weight is not None}
    if acts != {key: node.attrs.get("act") for key, node in weighted.items()}:
        raise HubError(f"{name}: its steps changed the structure of timm's network; leave timm=true out")
    for key, node in weighted.items():
        scale = program.tensors[f"{key}.weight_scale"].double()
        codes = centred_weight(program, key).double()
        step = program.format_of(node.inputs[0]).scale * scale
        bias = program.tensors[f"{key}.bias"].double() * step
        state[f"{key}.weight"] = (codes * scale.reshape([-1] + [1] * (codes.dim() - 1))).float().contiguous()
        if key in norms:
            norm = norms[key]
            bn: Any = model.get_submodule(norm)
            state[f"{norm}.running_mean"] = torch.zeros_like(bn.running_mean)
            state[f"{norm}.running_var"] = torch.ones_like(bn.running_var)
            # gamma / sqrt(1 + eps) is one
            state[f"{norm}.weight"] = torch.full_like(bn.weight, (1.0 + bn.eps) ** 0.5)
            state[f"{norm}.bias"] = bias.float()
        elif f"{key}.bias" in state:
            state[f"{key}.bias"] = bias.float()
        elif bool((bias != 0).any()):
            raise HubError(f"{name}: {key} has no place for its bias in timm's network; leave timm=true out")
    return state


def _after(graph: fx.GraphModule) -> tuple[dict[str, str], dict[str, str | None]]:
    """Return layer -> the batch normalisation that follows it, and layer -> the ReLU or ReLU6 after that."""
    modules: dict[str, Any] = dict(graph.named_modules())
    norms: dict[str, str] = {}
    acts: dict[str, str | None] = {}
    for node in graph.graph.nodes:
        if node.op != "call_module" or not isinstance(modules[str(node.target)], nn.Conv2d | nn.Linear):
            continue
        layer, last = str(node.target), node
        users = [u for u in last.users if u.op == "call_module"]
        if len(users) == 1 and isinstance(modules[str(users[0].target)], nn.BatchNorm1d | nn.BatchNorm2d):
            norms[layer], last = str(users[0].target), users[0]
        users = [u for u in last.users if u.op == "call_module"]
        act = activation_name(modules[str(users[0].target)]) if len(users) == 1 else None
        acts[layer] = act if act in ("relu", "relu6") else None
    return norms, acts
