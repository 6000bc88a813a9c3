"""Versions with ``timm/`` and without, one after the other, through the real client and on a share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
import yaml
from torch import nn

import zoo
from tests.hub.conftest import Done, Server, User
from tests.hub.test_tools import MODEL, RECIPE
from zoo.artifact import checkpoint
from zoo.data import DataConfig, load_split
from zoo.hub.folder import Folder
from zoo.resolve import build

TIMM = {"timm/config.json", "timm/manifest.json", "timm/model.safetensors"}


@pytest.fixture(scope="module")
def measured(small: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quantized timm network with the record of its accuracy on 40 made-up images."""
    torch.manual_seed(4)
    net = timm.create_model("mobilenetv2_035", num_classes=10)
    assert isinstance(net.classifier, nn.Linear)
    # the same class for every image, so that it scores the same in float as in integers
    nn.init.zeros_(net.classifier.weight)
    nn.init.zeros_(net.classifier.bias)
    with torch.no_grad():
        net.classifier.bias[3] = 1.0
    model = MODEL | {"preprocess": {"size": [32, 32], "mean": [127.5] * 3, "std": [127.5] * 3}}
    data = {"name": "fake", "reader": "fake", "args": {"n": 40}}
    images = load_split(build(DataConfig, data, "data"), "test", None)
    made = {key: model["preprocess"][key] for key in ("mean", "std")}  # type: ignore[index]
    quantized = zoo.quantize(net, RECIPE, [torch.randn(64, 3, 32, 32)], preprocess=made)
    record = checkpoint.read(small["first"]).metrics | {
        "recipe": "tiny", "top1": 10.0,  # the share of each of ten classes
        "data": {"name": images.name, "n": 40, "subset": images.subset, "fingerprint": images.fingerprint},
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("measured") / "tiny"
    config = quantized.config | {"name": "tiny", "license": "Apache-2.0"}
    recipe = yaml.safe_dump(RECIPE | {"model": model, "data": data})
    checkpoint.save(folder, quantized.program, config, recipe=recipe, metrics=record, card="x")
    return folder


def publish(user: User, source: Path, repo: str, *options: str) -> Done:
    return user.run("zoo.publish", str(source), f"repo={repo}", *options)


def test_a_version_follows_one_with_timm(user: User, server: Server, measured: Path) -> None:
    for option, tag in (("true", "v1"), ("true", "v1"), ("false", "v2"), ("false", "v2"), ("true", "v3")):
        before = server.repo("org/timm")
        done = publish(user, measured, "org/timm", f"timm={option}")
        assert done.rc == 0, done.err
        found = server.repo("org/timm")
        assert found is not None and found["tags"][tag] == found["head"] and len(found["tags"]) == int(tag[1:])
        assert ("released" in done.out) == (before is None or before["tags"] != found["tags"])
        sent = {name for name in found["files"][found["head"]] if "/" in name}
        assert sent == (TIMM if option == "true" else set())


def test_what_broke_off_with_timm_is_completed(user: User, server: Server, measured: Path) -> None:
    server.fault({"match": "/tag/", "kind": "status", "status": 500, "times": 1000})
    assert "answered 500" in publish(user, measured, "org/broken", "timm=true").line
    server.fault()
    done = publish(user, measured, "org/broken", "timm=true")
    assert done.rc == 0, done.err
    found = server.repo("org/broken")
    assert found is not None and found["tags"] == {"v1": found["head"]} and found["commits"] == 2


def test_what_someone_deleted_by_hand_is_not_deleted_again(user: User, server: Server, measured: Path) -> None:
    assert publish(user, measured, "org/byhand", "timm=true").rc == 0
    server.put("org/byhand", **{"timm/model__safetensors": None})
    done = publish(user, measured, "org/byhand")
    assert done.rc == 0, done.err
    found = server.repo("org/byhand")
    assert found is not None and not [name for name in found["files"][found["head"]] if "/" in name]


def test_a_version_without_timm_stays_the_last_on_a_share(user: User, measured: Path, tmp_path: Path) -> None:
    share = f"file://{tmp_path}/share"
    for options in (["timm=true"], [], []):
        assert publish(user, measured, f"{share}/org/net", *options).rc == 0
    hub = Folder(tmp_path / "share")
    tags = hub.tags("org/net")
    assert sorted(tags) == ["v1", "v2"] and hub.head("org/net") == tags["v2"]
    held = hub.download("org/net", tags["v2"], "config.json").parent
    assert not (held / "timm").exists() or not list((held / "timm").iterdir())
    entry = next(iter(json.loads((user.home / "index.json").read_text())["checkpoints"].values()))
    assert entry["tag"] == "v2" and not TIMM & set(entry["files"])
