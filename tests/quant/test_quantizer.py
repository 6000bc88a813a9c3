from __future__ import annotations

import math

import pytest
import torch

from zoo.errors import QuantError
from zoo.quant.observers.kl import Kl
from zoo.quant.observers.minmax import Minmax
from zoo.quant.observers.mse import Mse
from zoo.quant.observers.percentile import Percentile
from zoo.quant.quantizer import Quantizer
from zoo.quant.rounding import LearnedRounding, beta, rounding_loss
from zoo.quant.spec import Format


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8, 16])
@pytest.mark.parametrize("signed", [True, False])
def test_every_width_uses_its_whole_range(bits: int, signed: bool) -> None:
    quantizer = Quantizer(Format(bits=bits, symmetric=False), signed=signed)
    quantizer.set_range(torch.tensor([-1.0]), torch.tensor([3.0]))
    codes = quantizer.codes(torch.linspace(-1.5, 3.5, 100_000))
    low = -(2 ** (bits - 1)) if signed else 0
    assert codes.min() == low and codes.max() == low + 2**bits - 1 and len(codes.unique()) == 2**bits


def test_zero_is_exact_and_ends_are_within_half_a_step() -> None:
    quantizer = Quantizer(Format(bits=4, symmetric=False), signed=False)
    quantizer.set_range(torch.tensor([-0.37]), torch.tensor([1.91]))
    ends = torch.tensor([0.0, -0.37, 1.91])
    error = (quantizer(ends) - ends).abs()
    assert error[0] == 0 and float(error.max()) <= float(quantizer.scale.detach()) * 0.5001


def test_power_of_two_scales_are_powers_of_two_and_cover_the_range() -> None:
    quantizer = Quantizer(Format(bits=8, symmetric=True, scale="pow2"), signed=True)
    quantizer.set_range(torch.tensor([-0.9]), torch.tensor([0.7]))
    assert math.log2(float(quantizer.scale.detach())).is_integer() and float(quantizer.scale.detach()) * 128 >= 0.9


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_ranges_that_are_not_finite_are_refused(bad: float) -> None:
    quantizer = Quantizer(Format(bits=8), signed=True)
    with pytest.raises(QuantError, match="not finite"):
        quantizer.set_range(torch.tensor([0.0]), torch.tensor([bad]))
    with pytest.raises(QuantError, match="scale"):
        quantizer.set_qparams(torch.tensor([bad]))


def test_a_constant_tensor_gets_a_usable_scale() -> None:
    for low, high in ((0.0, 0.0), (2.0, 2.0), (-3.0, -3.0)):
        quantizer = Quantizer(Format(bits=8, symmetric=False), signed=False)
        quantizer.set_range(torch.tensor([low]), torch.tensor([high]))
        assert torch.allclose(quantizer(torch.tensor([high])), torch.tensor([high]), atol=1e-6)


def test_minmax_loses_nothing_outside_and_percentile_cuts() -> None:
    quantizer = Quantizer(Format(bits=8, symmetric=False), signed=False)
    sample = torch.cat([torch.linspace(0, 1, 9999), torch.tensor([100.0])])[None]
    ends = torch.tensor([0.0]), torch.tensor([100.0])
    assert Minmax().range(sample, *ends, quantizer)[1] == 100
    assert float(Percentile(99.9).range(sample, *ends, quantizer)[1]) < 1.01


@pytest.mark.parametrize("observer", [Mse(), Mse(p=2.0), Kl()])
def test_searching_observers_cut_a_lone_outlier(observer: Mse | Kl) -> None:
    torch.manual_seed(0)
    quantizer = Quantizer(Format(bits=4, symmetric=False), signed=False)
    sample = torch.cat([torch.rand(20_000), torch.tensor([30.0])])[None]
    _, high = observer.range(sample, torch.tensor([0.0]), torch.tensor([30.0]), quantizer)
    assert 0.5 < float(high) < 15


def test_mse_is_never_worse_than_minmax() -> None:
    torch.manual_seed(0)
    for bits in (2, 4, 8):
        sample = torch.randn(3, 4000) * torch.tensor([[1.0], [3.0], [0.1]])
        low, high = sample.amin(1), sample.amax(1)
        errors = []
        for observer in (Minmax(), Mse(p=2.0)):
            quantizer = Quantizer(Format(bits=bits, granularity="per_channel"), signed=True, channels=3)
            quantizer.set_range(*observer.range(sample, low, high, quantizer))
            errors.append((quantizer(sample) - sample).square().mean(1))
        assert bool((errors[1] <= errors[0] * 1.0001).all())


@pytest.mark.parametrize(("channels", "length"), [(1, 700), (5, 300), (64, 9000)])
def test_mse_tries_every_candidate_of_every_channel(channels: int, length: int) -> None:
    torch.manual_seed(0)
    sample = torch.randn(channels, length) * torch.rand(channels, 1)
    low, high = sample.amin(1), sample.amax(1)
    quantizer = Quantizer(Format(bits=3, granularity="per_channel"), signed=True, channels=channels)
    quantizer.set_range(*Mse(candidates=8).range(sample, low, high, quantizer))
    least = torch.full((channels,), float("inf"))
    for step in range(8):
        trial = Quantizer(Format(bits=3, granularity="per_channel"), signed=True, channels=channels)
        trial.set_range(low * (1 - step / 8), high * (1 - step / 8))
        least = torch.minimum(least, (trial(sample) - sample).abs().pow(2.4).mean(1))
    assert torch.allclose((quantizer(sample) - sample).abs().pow(2.4).mean(1), least, rtol=1e-6)


def test_learned_rounding_starts_at_the_weight_and_ends_on_the_grid() -> None:
    torch.manual_seed(0)
    weight, scale = torch.rand(5, 6) - 0.5, torch.full((5, 1), 0.1)
    rounding = LearnedRounding(weight, scale, torch.zeros(5, 1), -8, 7)
    assert torch.allclose(rounding(weight), weight.clamp(-0.8, 0.7), atol=1e-4)
    assert torch.equal(rounding.codes(), torch.round(weight / scale).clamp(-8, 7))
    assert float(rounding_loss(torch.tensor([0.0, 1.0]), 2.0)) == 0.0
    assert float(rounding_loss(torch.tensor([0.5]), 2.0)) == 1.0
    assert beta(0, 100) is None and beta(20, 100) == 20.0 and (beta(99, 100) or 9) < 2.5


def test_kl_keeps_what_a_relu_passes() -> None:
    torch.manual_seed(0)
    for values in (torch.randn(1, 100_000).relu(), -torch.rand(1, 100_000).log() * (torch.rand(1, 100_000) < 0.5)):
        q = Quantizer(Format(8), signed=False)
        errors = {}
        for name, observer in (("kl", Kl()), ("minmax", None)):
            low, high = values.amin(1), values.amax(1)
            q.set_range(*(observer.range(values, low, high, q) if observer else (low, high)))
            errors[name] = float((q(values) - values).square().mean())
        assert errors["kl"] < 4 * errors["minmax"]


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
def test_the_gain_of_lsq_counts_the_weights_that_share_a_scale(granularity: str) -> None:
    fmt = Format(bits=4, granularity=granularity)  # type: ignore[arg-type]
    weight = torch.zeros(64, 16, 3, 3)
    shared = 64 * 16 * 9 if granularity == "per_tensor" else 16 * 9
    assert Quantizer(fmt, signed=True, channels=64).lsq_gain(weight) == pytest.approx((shared * 7) ** -0.5)
    # of activations those of one image, however large the batch
    assert Quantizer(Format(bits=4), signed=True).lsq_gain(weight) == pytest.approx((16 * 9 * 7) ** -0.5)
