"""The proofs that allow a fast path: which one is taken, for how many channels, and what a proof takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.integer.test_semantics import SEMANTICS, expected, rule
from zoo.integer.semantics import tflite
from zoo.integer.semantics._fixed_point import DoubleRounding


def test_each_path_is_taken() -> None:
    weights = torch.tensor([0.011, 0.007, 0.013])
    few = tflite.requantize(0.02, weights, 0.4, low=0, high=15)
    many = tflite.requantize(0.02, weights, 0.04, low=-128, high=127)
    finest = tflite.requantize(2.0**-14, torch.tensor([2.0**-12 * 1.1]), 1.0, low=-32768, high=32767, wide=False)
    assert [few.path, many.path, finest.path] == ["float32", "float64", "int64"]


def wide_layer(channels: int, low: int, high: int) -> Any:
    """Return the arithmetic of a layer so far below its output's step that only a proof allows float64."""
    weights = torch.rand(channels, generator=torch.Generator().manual_seed(4)) + 0.5
    return tflite.requantize(2.0**-12, weights, 2.0**8, low=low, high=high)


@pytest.mark.parametrize(("low", "high"), [(-128, 127), (-8, 7), (0, 15)])
def test_a_proof_takes_no_more_memory_for_more_channels(low: int, high: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, forward = [0], DoubleRounding.forward

    def watched(self: DoubleRounding, x: Tensor) -> Tensor:
        sizes.append(x.numel())
        return forward(self, x)

    monkeypatch.setattr(DoubleRounding, "forward", watched)
    channels = 2**20 // (high - low)
    module = wide_layer(channels, low, high)
    assert module.path != "int64" and module.offset.numel() == channels
    assert sum(sizes) >= 3 * (high - low) * channels  # every step of every channel was examined,
    assert max(sizes) <= 2**17  # in parts that are as large for a layer of any width


@pytest.mark.parametrize("channels", [1, 7, 1000])
def test_slices_of_channels_are_proven_as_each_channel_alone(channels: int) -> None:
    module = wide_layer(channels, -128, 127)
    weights = torch.rand(channels, generator=torch.Generator().manual_seed(4)) + 0.5
    for channel in range(0, channels, 97):
        alone: Any = tflite.requantize(2.0**-12, weights[channel : channel + 1], 2.0**8, low=-128, high=127)
        assert alone.path == module.path == "float64"
        assert torch.equal(alone.offset, module.offset[channel : channel + 1])


def test_one_channel_beyond_float32_keeps_the_others_out_of_it() -> None:
    """One of 9000 channels, in one of the last slices, has steps that float32 cannot tell apart."""
    weights = torch.full((9000,), 2.0**-4)
    easy: Any = tflite.requantize(2.0**-4, weights, 1.0, low=-8, high=7)
    weights[8990] = 2.0**-22 * 1.1
    hard: Any = tflite.requantize(2.0**-4, weights, 1.0, low=-8, high=7)
    assert [easy.path, hard.path] == ["float32", "float64"]


def test_a_layer_too_wide_for_a_proof_runs_the_rule() -> None:
    channels = 2**22 // 255 + 1
    module = wide_layer(channels, -128, 127)
    assert module.path == "int64"
    acc = torch.randint(-(2**31), 2**31, (3, channels), generator=torch.Generator().manual_seed(5)).double()
    weights = (torch.rand(channels, generator=torch.Generator().manual_seed(4)) + 0.5).tolist()
    some = range(0, channels, 1999)
    formula = rule("tflite", 2.0**-12, [weights[c] for c in some], 2.0**8, wide=False)
    assert torch.equal(module(acc)[:, list(some)], expected(acc[:, list(some)], formula, -128, 127))


@pytest.mark.parametrize("name", SEMANTICS)
def test_a_range_of_one_code_has_no_step_to_prove(name: str) -> None:
    """A ReLU in front of the largest zero point: whatever comes is 0."""
    for factor in (0.5, 2.0**-30):
        module = SEMANTICS[name].requantize(factor, torch.ones(2), 1.0, low=0, high=0)
        assert module(torch.tensor([[-(2.0**30), 2.0**30], [0.0, 1.0]])).tolist() == [[0.0, 0.0], [0.0, 0.0]]
