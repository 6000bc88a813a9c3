"""What a recipe asks of the processor: bfloat16, which one without the instructions for it can only imitate."""

from __future__ import annotations

import torch

from zoo.recipe import Recipe, make_step


def multiplies_bfloat16() -> bool:
    """Tell whether oneDNN has bfloat16 convolutions for this processor: AVX-512, AMX, or Arm's BF16."""
    has_onednn = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    return has_onednn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def imitated(recipe: Recipe) -> dict[int, str]:
    """Return the fields of a recipe, by step, that ask this processor for a bfloat16 which it can only imitate."""
    if multiplies_bfloat16():
        return {}
    found = {}
    for i, step in enumerate(recipe.steps):
        # the step train takes a GPU where there is one, the others stay on the processor
        elsewhere = step.name == "train" and torch.cuda.is_available()
        if getattr(make_step(step, f"recipe.steps[{i}]"), "bf16", False) and not elsewhere:
            found[i] = f"steps.{i}.{step.name}.bf16"
    return found


def advice(recipe: Recipe, position: int) -> str:
    """Return what to tell who waits for the step at this position, empty unless it is the first that takes so long."""
    found = imitated(recipe)
    if position != min(found, default=None):
        return ""
    changes = " ".join(f"++{field}=false" for field in found.values())
    return (
        f"{recipe.name}: this processor only imitates bfloat16, which the recipe computes in, and takes many times as "
        f"long. With bf16: false in the steps it is fast here, but makes another network than the recorded one. On the "
        f"command line: {changes} output=DIR"
    )
