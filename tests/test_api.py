"""The functions of the package, as a user calls them."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import zoo
from tests.networks import SIZE, images, small_resnet
from zoo import paths
from zoo.artifact.checkpoint import Network
from zoo.errors import ArtifactError, DataError, GraphError, RecipeError
from zoo.rescore import rescore

ROOT = Path(__file__).resolve().parents[1]
RECIPE: dict[str, Any] = {
    "name": "mine",
    "quant": {"weight": {"bits": 4, "granularity": "per_channel"}, "act": {"bits": 8, "symmetric": False}},
    "steps": ["fold_batchnorm", "quantize", {"calibrate": {"act": "minmax"}}, "integerize"],
}
LABELS = [f"class {i}" for i in range(10)]
MADE = {"mean": [120.0, 110.0, 100.0], "std": [60.0, 61.0, 62.0], "resize": SIZE, "interpolation": "bilinear"}


@pytest.fixture(scope="module")
def network() -> Network:
    return zoo.quantize(small_resnet(), RECIPE, [images(64)], preprocess=MADE, labels=LABELS)


@torch.no_grad()
def test_quantize_save_load_is_bit_equal(network: Network, tmp_path: Path) -> None:
    network.save(tmp_path / "net")
    x = images(16)
    for place in (tmp_path / "net", str(tmp_path / "net")):
        loaded = zoo.load(place, integer=True)
        assert torch.equal(loaded(x), network(x))
    assert all(torch.equal(t, loaded.program.tensors[n]) for n, t in network.program.tensors.items())
    fake = zoo.load(tmp_path / "net")(x)
    step = network.program.format_of(network.program.nodes[-1].name).scale
    # fake quantization follows the integers to a few steps of the logits, and is no copy of them
    assert float((fake - network(x)).abs().max()) <= 8 * step


def test_the_checkpoint_of_quantize_is_complete(network: Network, tmp_path: Path) -> None:
    network.save(tmp_path / "net")
    assert {p.name for p in (tmp_path / "net").iterdir()} == {
        "README.md", "config.json", "manifest.json", "metrics.json", "model.safetensors", "recipe.yaml",
    }  # fmt: skip
    assert json.loads((tmp_path / "net" / "metrics.json").read_text()) == {}
    loaded = zoo.load(tmp_path / "net")
    assert loaded.labels == tuple(LABELS) and loaded.config["num_classes"] == 10
    assert loaded.card == network.card and "accuracy was not measured" in loaded.card
    assert "64 calibration images" in loaded.card
    groups = loaded.config["quantization_config"]["config_groups"]
    weighted = {n.name for n in network.program.nodes if n.weight is not None}
    assert {name for group in groups.values() for name in group["targets"]} == weighted
    assert loaded.config["provenance"]["calibration"] == {"n": 64}
    rerun = zoo.quantize(small_resnet(), _yaml(loaded.recipe), [images(64)])
    assert all(torch.equal(t, rerun.program.tensors[n]) for n, t in network.program.tensors.items())


def test_the_recipe_of_quantize_is_the_one_that_was_run(network: Network, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="64 images are given, the recipe's calibrate takes 1,024"):
        made = zoo.quantize(small_resnet(), "resnet8_w4a8", [images(64)], preprocess=MADE)
    made.save(tmp_path / "fewer")
    counts = [next(iter(s.values())) for s in _yaml(zoo.load(tmp_path / "fewer").recipe)["steps"] if "calibrate" in s]
    assert [c["images"] for c in counts] == [64]
    # the file of that recipe is a recipe: it asks for what there was
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = zoo.quantize(small_resnet(), str(tmp_path / "fewer" / "recipe.yaml"), [images(64)], preprocess=MADE)
    assert all(torch.equal(t, again.program.tensors[n]) for n, t in made.program.tensors.items())
    with pytest.raises(ArtifactError, match="was never measured and names no test images"):
        rescore(tmp_path / "fewer")
    assert _yaml(network.recipe)["steps"] == RECIPE["steps"]


def _yaml(text: str) -> dict[str, Any]:
    import yaml

    fields = yaml.safe_load(text)
    assert isinstance(fields, dict)
    return fields


def test_pictures_and_arrays_become_the_input(network: Network, tmp_path: Path) -> None:
    network.save(tmp_path / "net")
    loaded = zoo.load(tmp_path / "net", integer=True)
    array = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    x = loaded.preprocess(array)
    assert x.dtype == torch.float32 and tuple(x.shape) == (3, SIZE, SIZE)
    wanted = (array[2, 5].astype(np.float64) - MADE["mean"]) / MADE["std"]
    assert np.allclose(x[:, 2, 5].numpy(), wanted, rtol=1e-6)
    assert torch.equal(loaded.preprocess(Image.fromarray(array)), x)
    large = Image.fromarray(np.full((40, 57, 3), 7, np.uint8))
    assert tuple(loaded(loaded.preprocess(large)[None]).shape) == (1, 10)
    for wrong in (array.astype(np.float32), array[:, :, :2], "cat.png", np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(DataError, match="preprocess"):
            loaded.preprocess(wrong)


def test_quantize_leaves_the_network_as_it_was() -> None:
    net = small_resnet().train()
    frozen = next(m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)).eval()
    before = {name: (t.clone(), t.stride()) for name, t in net.state_dict().items()}
    zoo.quantize(net, RECIPE, [images(64)])
    assert not frozen.training and net.training and sum(not m.training for m in net.modules()) == 1
    for name, t in net.state_dict().items():
        assert torch.equal(t, before[name][0]) and t.stride() == before[name][1], name


@torch.no_grad()
def test_no_image_gives_no_logits(network: Network, tmp_path: Path) -> None:
    network.save(tmp_path / "net")
    for integer in (True, False):
        assert zoo.load(tmp_path / "net", integer=integer)(images(1)[:0]).shape == (0, 10)


def test_what_quantize_cannot_use_is_refused() -> None:
    net, pictures = small_resnet(), [images(16)]
    with pytest.raises(RecipeError, match=r"resnet8_w8b8.*did you mean 'resnet8_w8a8'"):
        zoo.quantize(net, "resnet8_w8b8", pictures)
    with pytest.raises(RecipeError, match="the recipe must be a name or a mapping, got list"):
        zoo.quantize(net, ["quantize"], pictures)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="empty"):
        zoo.quantize(net, RECIPE, [])
    with pytest.raises(DataError, match="NaN"):
        zoo.quantize(net, RECIPE, [images(4) * float("nan")])
    with pytest.raises(DataError, match="1 or 3 channels"):
        zoo.quantize(net, RECIPE, [torch.zeros(4, 5, SIZE, SIZE)])
    with pytest.raises(DataError, match="labels: got 2"):
        zoo.quantize(net, RECIPE, pictures, labels=["a", "b"])
    with pytest.raises(DataError, match="labels: must be texts"):
        zoo.quantize(net, RECIPE, pictures, labels=list(range(10)))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"batches hold images of \[3, 4, 4\] and \[3, 5, 4\]"):
        zoo.quantize(net, RECIPE, [torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 5, 4)])
    with pytest.raises(RecipeError, match="the last step must be integerize"):
        zoo.quantize(net, RECIPE | {"steps": ["fold_batchnorm", "quantize"]}, pictures)
    with pytest.raises(RecipeError, match="leave teacher out"):
        zoo.quantize(net, RECIPE | {"teacher": {"name": "x"}}, pictures)
    with pytest.raises(DataError, match="make them equal"):
        zoo.quantize(net, RECIPE, pictures, preprocess=MADE | {"size": [SIZE, SIZE + 1]})
    for given, message in (
        ({"means": [0.0]}, "preprocess: field 'means' is unknown; did you mean 'mean'"),
        ({"mean": 0.5, "std": [1.0]}, r"preprocess\.mean: must be a list of numbers, got 0\.5"),
        (
            {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
            r"makes values of -2\.118 to 1136",
        ),
    ):
        with pytest.raises(DataError, match=message):
            zoo.quantize(net, RECIPE, pictures, preprocess=given)
    with pytest.raises(DataError, match=r"preprocess: makes values of -2 to 2.*the loader gives .* in pixels"):
        zoo.quantize(net, RECIPE, [images(16) * 50 + 120], preprocess={"mean": [127.5] * 3, "std": [63.75] * 3})
    with pytest.raises(DataError, match="calibration: must be a loader of batches, got NoneType"):
        zoo.quantize(net, RECIPE, None)  # type: ignore[arg-type]
    with pytest.raises(GraphError, match=r"must be a torch\.nn\.Module, got function"):
        zoo.quantize(lambda x: x, RECIPE, pictures)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="resnet8_qat_w8a8: trains with labels"):
        zoo.quantize(net, "resnet8_qat_w8a8", [images(1024)])
    with pytest.raises(RecipeError, match="resnet8_float: trains a float network"):
        zoo.quantize(net, "resnet8_float", pictures)
    with pytest.raises(RecipeError, match=r"quant 'w4a44' is unknown.*did you mean 'w4a4'"):
        zoo.quantize(net, RECIPE | {"quant": "w4a44"}, pictures)


def test_formats_by_name_and_preprocessing_of_another_network(network: Network) -> None:
    made = zoo.quantize(small_resnet(), RECIPE | {"quant": "w4a8"}, [images(64)], preprocess=network.preprocess)
    assert made.preprocess == network.preprocess
    assert {n.weight.bits for n in made.program.nodes if n.weight is not None} == {4, 8}


def test_values_that_are_no_pixels_are_told_of_without_preprocess() -> None:
    with pytest.warns(UserWarning, match=r"no preprocess is given.*0 to 255, the loader gives -\d") as told:
        zoo.quantize(small_resnet(), RECIPE, [images(64)])
    assert told[0].filename == __file__
    pixels = torch.randint(0, 256, (64, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(0)).float()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        zoo.quantize(small_resnet(), RECIPE, [pixels])
        zoo.quantize(small_resnet(), RECIPE, [images(64)], preprocess={"mean": [127.5] * 3, "std": [63.75] * 3})


def test_what_is_no_image_is_refused_and_integers_have_no_gradient(network: Network) -> None:
    for x, kind in ((np.zeros((1, 3, SIZE, SIZE)), "ndarray"), (torch.zeros(1, 3, SIZE, SIZE).byte(), r"torch\.uint8")):
        with pytest.raises(DataError, match=rf"the input must be a tensor of floats, got {kind}; use \.preprocess"):
            network(x)
    x = images(2).requires_grad_()
    assert torch.equal(network(x), network(x.detach())) and not network(x).requires_grad


def test_unknown_names_are_answered_with_near_ones() -> None:
    with pytest.raises(ArtifactError, match=r"'resnet8_w8a9'.*did you mean 'resnet8_w8a8'"):
        zoo.load("resnet8_w8a9")


@pytest.mark.parametrize("name", ["", "no such thing", "x" * 5000, "a\0b", "../nowhere", "README.md"])
def test_names_of_nothing_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "README.md").write_text("a file")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError) as error:
        zoo.load(name)
    assert "\n" not in str(error.value)


def test_every_listed_checkpoint_loads() -> None:
    found = zoo.list_checkpoints()
    assert "resnet8_w8a8" in found and set(found) <= set(zoo.list_recipes())
    for name in found:
        net = zoo.load(name)
        assert net.config["name"] == name and len(net.labels) == net.config["num_classes"]


def test_listing_needs_neither_torch_nor_hydra() -> None:
    code = (
        "import sys, zoo; zoo.list_recipes(); zoo.list_checkpoints();"
        "print(sorted({'torch', 'hydra', 'omegaconf', 'timm', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_logits_that_are_a_mean_are_logits_and_pictures_are_not(tmp_path: Path) -> None:
    torch.manual_seed(0)
    body = [torch.nn.Conv2d(3, 10, 3), torch.nn.AdaptiveAvgPool2d(1)]
    made = zoo.quantize(torch.nn.Sequential(*body, torch.nn.Flatten()), RECIPE, [images(64)], labels=LABELS)
    made.save(tmp_path / "net")
    assert zoo.load(tmp_path / "net").config["num_classes"] == 10
    with pytest.raises(
        GraphError, match=r"gives \['N', 10, 1, 1\], a classifier gives \[N, classes\]; pool and flatten"
    ):
        zoo.quantize(torch.nn.Sequential(*body), RECIPE, [images(64)])


def test_a_folder_here_is_no_shipped_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    assert paths.local_checkpoint("mine") == Path("mine") and paths.shipped_checkpoint("mine") is None
    shipped = paths.results_dir() / "resnet8_fashion_w4a4" / "checkpoint"
    (tmp_path / "resnet8_fashion_w4a4").mkdir()
    assert paths.shipped_checkpoint("resnet8_fashion_w4a4") == paths.local_checkpoint(shipped.parent.name) == shipped


def test_a_recipe_without_a_checkpoint_says_what_makes_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(paths, "results_dir", lambda: tmp_path)
    with pytest.raises(ArtifactError, match=r"^'resnet8_w4a4': its checkpoint is not here; .* recipe=resnet8_w4a4"):
        zoo.load("resnet8_w4a4")
    with pytest.raises(ArtifactError, match=r"^'resnet8_float': no such checkpoint"):  # it makes float weights
        zoo.load("resnet8_float")
