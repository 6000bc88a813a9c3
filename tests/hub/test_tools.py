"""Other tools on our repositories: the ``hf`` command, timm, and our commands as processes of their own."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from torch import nn

import zoo
from tests.hub.conftest import Server, User
from zoo.artifact import checkpoint, files
from zoo.errors import HubError
from zoo.hub.dequantize import write_timm
from zoo.quant.layers import QNode
from zoo.recipe import Recipe

HF = str(Path(sys.executable).with_name("hf"))
RECIPE: dict[str, Any] = {
    "name": "tiny",
    "quant": {"weight": {"bits": 8, "granularity": "per_channel"}, "act": {"bits": 8, "symmetric": False}},
    "steps": ["fold_batchnorm", "quantize", {"calibrate": {"weight": "minmax", "act": "minmax"}}, "integerize"],
}
MODEL = {"name": "tiny", "builder": "from_timm", "args": {"name": "mobilenetv2_035", "num_classes": 10},
         "preprocess": {"size": [64, 64], "mean": [127.5] * 3, "std": [127.5] * 3},
         "license": "Apache-2.0"}  # fmt: skip


def test_the_commands_as_processes(user: User, server: Server, small: dict[str, Path]) -> None:
    done = user.process(sys.executable, "-m", "zoo.publish", str(small["first"]), "repo=org/tools")
    assert done.rc == 0 and done.err == "", done.err
    (user.home / "index.json").unlink()
    pulled = user.process(sys.executable, "-m", "zoo.pull", "org/tools@v1", f"output={user.home / 'out'}")
    assert pulled.rc == 0 and pulled.err == "", pulled.err
    ours = {p.name: files.sha256(p) for p in (user.home / "out" / "tools").iterdir()}

    assert "ann" in user.process(HF, "auth", "whoami").out
    got = user.process(HF, "download", "org/tools", "--revision", "v1", "--local-dir", str(user.home / "hf-out"))
    assert got.rc == 0, got.err
    theirs = {p.name: files.sha256(p) for p in (user.home / "hf-out").iterdir() if p.is_file()}
    theirs.pop(".gitattributes")
    assert theirs == ours
    checked = user.process(HF, "cache", "verify", "org/tools", "--revision", "v1")
    assert checked.rc == 0, checked.err

    code = "import timm; timm.create_model('hf-hub:org/tools@v1', pretrained=True)"
    refused = user.process(sys.executable, "-c", code)
    assert refused.rc == 1 and "Unknown model" in refused.err


def test_the_card_is_valid_for_the_hub(user: User, server: Server, small: dict[str, Path]) -> None:
    assert user.run("zoo.publish", str(small["first"]), "repo=org/card").rc == 0
    asked = [e for e in server.log() if e["path"] == "/api/validate-yaml"]
    assert asked and asked[0]["status"] == 200
    user.run("zoo.pull", "org/card@v1", f"output={user.home / 'out'}")
    text = (user.home / "out" / "card" / "README.md").read_text()
    fields = yaml.safe_load(text.split("---\n")[1])
    metrics = json.loads((user.home / "out" / "card" / "metrics.json").read_text())
    assert fields["license"] == "apache-2.0" and fields["base_model_relation"] == "quantized"
    assert fields["datasets"] == ["zalando-datasets/fashion_mnist"]
    (result,) = fields["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == round(metrics["top1"], 4)
    assert 'zoo.load("org/card@v1"' in text
    from huggingface_hub import ModelCard

    assert ModelCard(text).data.eval_results[0].metric_value == result["metrics"][0]["value"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    """A small timm network with random weights, quantized, and its float parent."""
    torch.manual_seed(2)
    net = timm.create_model("mobilenetv2_035", num_classes=10)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.normal_(module.bias, 0.0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    folder = tmp_path_factory.mktemp("tiny") / "tiny"
    made = {k: MODEL["preprocess"][k] for k in ("mean", "std")}  # type: ignore[index]
    zoo.quantize(net, RECIPE, [torch.randn(64, 3, 64, 64)], preprocess=made).save(folder)
    return folder, net


@torch.no_grad()
def test_the_float_weights_load_in_timm_and_compute_the_same(tiny: tuple[Path, nn.Module], tmp_path: Path) -> None:
    folder, parent = tiny
    read = checkpoint.read(folder)
    read.config["license"] = "Apache-2.0"
    recipe = Recipe.parse(RECIPE | {"model": MODEL, "data": {}})
    net = write_timm(tmp_path / "timm", recipe, read)
    again = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    x = torch.randn(32, 3, 64, 64)
    assert torch.equal(net(x), again(x))
    # the fake-quantized network without the quantization of its activations is what timm should compute, but for the
    # share of a step that a bias holds against the rounding
    reference = read.network()
    for module in reference.modules():
        if isinstance(module, QNode):
            module.out.active, module.nudge = False, None
    assert float((again(x) - reference(x)).norm() / reference(x).norm()) < 0.02
    assert float((parent.eval()(x) - reference(x)).norm() / reference(x).norm()) > 0.02, "not the parent itself"
    assert again.default_cfg["mean"] == pytest.approx((0.5, 0.5, 0.5))


def test_another_activation_than_timms_is_refused(tiny: tuple[Path, nn.Module], tmp_path: Path) -> None:
    read = checkpoint.read(tiny[0])
    read.program.nodes[1].attrs["act"] = "relu"  # as the step replace_relu6 leaves it
    with pytest.raises(HubError, match="structure"):
        write_timm(tmp_path / "timm", Recipe.parse(RECIPE | {"model": MODEL, "data": {}}), read)


def test_plain_timm_refuses_the_codes(tiny: tuple[Path, nn.Module], tmp_path: Path) -> None:
    """Even where timm knows the architecture, packed codes are no weights to it."""
    shutil.copytree(tiny[0], tmp_path / "copy")
    fields = json.loads((tiny[0] / "config.json").read_text()) | {"architecture": "mobilenetv2_035"}
    (tmp_path / "copy" / "config.json").write_text(json.dumps(fields))
    with pytest.raises((RuntimeError, TypeError)):
        timm.create_model(f"local-dir:{tmp_path / 'copy'}", pretrained=True)
