"""How an untrained network starts: whitened patches, identities."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.networks import images, start
from tests.steps.test_steps import apply
from zoo.compose import compose
from zoo.context import Context, Images
from zoo.errors import GraphError, RecipeError
from zoo.graph.trace import trace
from zoo.models import vgg9
from zoo.quant.spec import QuantConfig
from zoo.recipe import Step, ends_in_float, make_step
from zoo.training import train_float


def patches(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    return F.unfold(x.double(), conv.kernel_size, stride=conv.stride).transpose(1, 2).flatten(0, 1)


def test_whitened_filters_see_all_directions_alike() -> None:
    """Where eps is far below the data, the outputs' moments are those of the drawn directions: G V'C V... = G G'."""
    pictures = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    pictures[:, 1] += 3 * pictures[:, 0]  # correlated channels
    graph = trace(nn.Sequential(nn.Conv2d(3, 40, 3, bias=False), nn.ReLU()), pictures[:1])
    conv = graph.get_submodule("0")
    before = conv.weight.clone()
    ctx = Context(QuantConfig(), Images(pictures), graph)
    whitened = apply(graph, ctx, ("whiten", {"images": 64, "eps": 1e-9})).get_submodule("0")
    rows = patches(conv, pictures)
    covariance = rows.T @ rows / len(rows)
    filters = whitened.weight.detach().double().flatten(1)
    moments = filters @ covariance @ filters.T
    # unit variance of every output, and 27 equal directions among 40 filters
    assert torch.allclose(moments.diagonal(), torch.ones(40, dtype=torch.float64), atol=1e-4)
    root = torch.linalg.cholesky(covariance)
    spectrum = torch.linalg.svdvals(filters @ root)
    directions = torch.linalg.svdvals(F.normalize(torch.randn(40, 27, generator=ctx.generator(), dtype=torch.float64)))
    assert torch.allclose(spectrum, directions, rtol=1e-4)
    assert torch.equal(conv.weight, before), "the graph it was given is not changed"


def test_eps_keeps_small_directions_down() -> None:
    pictures = images(32)
    graph = trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), pictures[:1])
    ctx = Context(QuantConfig(), Images(pictures), graph)
    sizes = [
        float(apply(graph, ctx, ("whiten", {"eps": eps})).get_submodule("0").weight.detach().norm())
        for eps in (1e-4, 1e-2, 1.0)
    ]
    assert sizes[0] > sizes[1] > sizes[2]


def test_dirac_hands_channels_on() -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 3, 32, 32)
    graph = trace(vgg9.build(10).eval(), x[:1])
    started = apply(graph, Context(QuantConfig(), Images(x), graph), ("dirac", {}))
    y = torch.rand(2, 128, 16, 16)
    for name in ("conv2", "conv3"):
        conv, old = started.get_submodule(name), graph.get_submodule(name)
        out = conv(y)
        assert torch.equal(out[:, :128], y)
        assert torch.equal(conv.weight[128:], old.weight[128:])
    assert not torch.equal(started.get_submodule("conv4").weight, graph.get_submodule("conv4").weight)
    assert torch.equal(started.get_submodule("conv1").weight, graph.get_submodule("conv1").weight)


@pytest.mark.parametrize("step", ["whiten", "dirac"])
def test_starts_say_where_they_belong(step: str) -> None:
    net, ctx = start()
    with pytest.raises(GraphError, match=f"{step}: the graph is already quantized; put {step} before quantize"):
        apply(net, ctx, ("fold_batchnorm", {}), ("quantize", {}), (step, {}))


def test_networks_that_do_not_fit_are_refused() -> None:
    x = torch.rand(2, 3, 8, 8)
    pooled = trace(nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(3, 8, 3)), x[:1])
    ctx = Context(QuantConfig(), Images(x), pooled)
    with pytest.raises(GraphError, match=r"whiten: what reads the images is .*, no convolution"):
        apply(pooled, ctx, ("whiten", {}))
    narrow = trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)), x[:1])
    with pytest.raises(GraphError, match="dirac: no convolution behind the first"):
        apply(narrow, Context(QuantConfig(), Images(x), narrow), ("dirac", {}))
    padded = trace(nn.Sequential(nn.Conv2d(3, 8, 9, padding=4)), x[:1])
    with pytest.raises(GraphError, match="images are smaller than the first convolution's kernel"):
        apply(padded, Context(QuantConfig(), Images(x), padded), ("whiten", {}))
    for settings in ({"eps": 0.0}, {"images": 0}):
        with pytest.raises(RecipeError, match="images and eps must be positive"):
            make_step(Step("whiten", settings), "test")


@pytest.mark.parametrize(
    ("steps", "float_"),
    [
        (["train"], True),
        ([{"train": {"epochs": 1}}, "train"], True),
        (["whiten", "dirac", {"train": {}}], True),
        (["quantize", "calibrate", "train"], False),
        (["integerize", "train"], False),
        (["train", "integerize"], False),
        ([], False),
        (None, False),
    ],
)
def test_what_ends_in_float(steps: object, float_: bool) -> None:
    assert ends_in_float({"steps": steps}) is float_


def test_a_float_recipe_with_a_start_of_its_own_trains(tmp_path: Path) -> None:
    fields = compose(["recipe=vgg9_cifar10_float", "model=resnet8_fashion_untrained", "data=fashion", "images=64",
                      "test_limit=50", "name=started"])  # fmt: skip
    assert [next(iter(s)) if isinstance(s, dict) else s for s in fields["steps"]] == ["whiten", "dirac", "train"]
    fields["steps"][-1]["train"] |= {"epochs": 1, "batch": 32, "patience": 9, "native": False}
    done = train_float(fields, output=tmp_path)
    assert done.n == 50 and done.path.is_file()
