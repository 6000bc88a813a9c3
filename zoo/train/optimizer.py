"""Parameters in groups, each with the rate and decay that it can bear."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, fx, nn

from zoo.quant.quantizer import Quantizer

Kind = Literal["sgd", "adamw"]


def groups(
    net: fx.GraphModule, *, lr: float, weight_decay: float, lr_scale: float
) -> tuple[list[nn.Parameter], list[dict[str, object]]]:
    """Return what is learned, and the optimizer's groups of it with their peak rates.

    Decay spares biases, BatchNorm and quantizers, except those whose publication asks for it (PACT). ``lr_scale`` is
    the quantizers' rate. In a Q-graph only a BatchNorm inside a layer has a parameter beside weights and biases.
    """
    learners = [q.learner for q in net.modules() if isinstance(q, Quantizer) and q.learner is not None]
    ranges = {id(p) for learner in learners for p in learner.parameters()}
    fixed = {id(p) for q in net.modules() if isinstance(q, Quantizer) for p in q.parameters()} - ranges
    parameters = [p for p in net.parameters() if id(p) not in fixed]
    plain = [p for p in parameters if id(p) not in ranges]
    made: list[dict[str, object]] = [
        {"params": [p for p in plain if p.dim() > 1], "lr": lr, "weight_decay": weight_decay},
        {"params": [p for p in plain if p.dim() <= 1], "lr": lr, "weight_decay": 0.0},
    ]
    for decay in sorted({learner.decay for learner in learners}):
        own = [p for learner in learners if learner.decay == decay for p in learner.parameters()]
        made.append({"params": own, "lr": lr_scale, "weight_decay": decay})
    return parameters, [g for g in made if g["params"]]


def optimizer(kind: Kind, parts: list[dict[str, object]], momentum: float) -> torch.optim.Optimizer:
    """Return SGD with Nesterov momentum, or AdamW with ``momentum`` as its first beta."""
    if kind == "sgd":
        return torch.optim.SGD(parts, lr=1.0, momentum=momentum, nesterov=momentum > 0)
    return torch.optim.AdamW(parts, lr=1.0, betas=(momentum, 0.999))


def tensors(made: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state as named tensors."""
    state = made.state_dict()["state"]
    return {f"{i}.{key}": value for i, entry in state.items() for key, value in entry.items() if value is not None}


def restore(made: torch.optim.Optimizer, saved: Iterable[tuple[str, Tensor]]) -> None:
    """Put back what ``tensors`` returned, in the memory order of the parameters."""
    parameters = [p for group in made.param_groups for p in group["params"]]
    for name, value in saved:
        index, key = name.split(".", 1)
        owner = parameters[int(index)]
        # a kernel may round the last bit otherwise in another order of memory
        same = value.shape == owner.shape and key != "step"
        made.state[owner][key] = torch.empty_like(owner).copy_(value) if same else value.clone()
