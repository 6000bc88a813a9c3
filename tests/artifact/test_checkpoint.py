from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import zoo
from tests.artifact.conftest import sign
from tests.networks import images
from zoo.artifact import checkpoint, files
from zoo.artifact.checkpoint import Network
from zoo.errors import ArtifactError, DataError
from zoo.paths import results_dir

Damage = Callable[..., Path]


@torch.no_grad()
def test_what_is_loaded_is_what_was_saved(network: Network, folder: Path) -> None:
    x = images(16)
    read = checkpoint.read(folder)
    assert read.program.tensors.keys() == network.program.tensors.keys()
    assert all(torch.equal(t, read.program.tensors[n]) for n, t in network.program.tensors.items())
    assert read.program.nodes == network.program.nodes
    assert torch.equal(zoo.load(folder, integer=True)(x), network(x))
    before = checkpoint.Checkpoint(network.program, network.config, "", {}).network()
    assert torch.equal(zoo.load(folder)(x), before(x))


def test_saving_again_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    zoo.load(folder).save(tmp_path / "again")
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_size_is_that_of_the_codes(network: Network, folder: Path) -> None:
    bits = 0
    for node in network.program.nodes:
        if node.weight is not None:
            weight = network.program.tensors[f"{node.name}.weight"]
            bits += weight.numel() * node.weight.bits + 64 * len(weight)
    assert (folder / "model.safetensors").stat().st_size - _header(folder) <= 1.05 * bits / 8


def _header(folder: Path) -> int:
    return 8 + int.from_bytes((folder / "model.safetensors").read_bytes()[:8], "little")


@pytest.mark.parametrize("name", zoo.list_checkpoints())
def test_shipped_checkpoints_load_and_keep_to_their_size(name: str) -> None:
    folder = results_dir() / name / "checkpoint"
    net = zoo.load(name, integer=True)
    ideal = 0.0
    for node in net.program.nodes:
        if node.weight is not None:
            weight = net.program.tensors[f"{node.name}.weight"]
            # docs/format.md: a row of 3-bit codes takes a block of 32 at least, and a depthwise layer's has nine codes
            columns = max(weight[0].numel(), 32 if node.weight.bits == 3 else 0)
            ideal += len(weight) * (columns * node.weight.bits / 8 + 8)
    size = (folder / "model.safetensors").stat().st_size
    assert size - _header(folder) <= 1.05 * ideal  # the names of the tensors do not grow with their codes
    assert net.labels and net.card.startswith("---")
    height, width = net.preprocess.size
    channels = net.program.input_shape[0]
    grey = Image.fromarray(np.full((height + 9, width + 5), 128, np.uint8))
    x = net.preprocess(grey if channels == 1 else grey.convert("RGB"))
    assert tuple(net(x[None]).shape) == (1, len(net.labels))


def test_an_input_of_another_size_is_refused(network: Network) -> None:
    with pytest.raises(DataError, match=r"must be \[N, 3, 16, 16\]"):
        network(torch.zeros(1, 3, 8, 8))


def test_every_flipped_file_is_noticed(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        for place in (0, len(content) // 2, len(content) - 1):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            if path.name == files.MANIFEST and place == len(content) - 1:
                continue  # white space after the JSON
            with pytest.raises(ArtifactError):
                checkpoint.read(folder)
        path.write_bytes(content)
    checkpoint.read(folder)


def test_missing_files_and_folders_are_named(folder: Path, tmp_path: Path) -> None:
    for name in ("model.safetensors", "config.json", "recipe.yaml", files.MANIFEST):
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        (copy / name).unlink()
        with pytest.raises(ArtifactError, match=name.replace(".", r"\.")):
            checkpoint.read(copy)
        shutil.rmtree(copy)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match="not a checkpoint folder"):
        zoo.load(tmp_path / "empty")
    with pytest.raises(ArtifactError, match=r"resnet8_w8b8.*resnet8_w8a8"):
        zoo.load("resnet8_w8b8")


def test_cut_weights_are_refused_behind_a_valid_hash(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    for length in (0, 4, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        sign(folder)
        with pytest.raises(ArtifactError, match="safetensors"):
            checkpoint.read(folder)


def _drop(tensors: dict[str, Any]) -> None:
    del tensors["bias"]


TENSORS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "missing": (_drop, r"'bias'.*missing"),
    "extra": (lambda t: t.update(more=torch.zeros(3)), "more.*no node"),
    "shape": (lambda t: t.update(bias=torch.zeros(11, dtype=torch.int32)), r"'bias'.*\[11\]"),
    "type": (lambda t: t.update(bias=t["bias"].float()), r"'bias'.*int32"),
    "packed type": (lambda t: t.update({"fc.weight_packed": t["fc.weight_packed"].float()}), r"fc\.weight_packed"),
    "nan scale": (lambda t: t["fc.weight_scale"].fill_(float("nan")), r"fc\.weight_scale.*positive"),
    "zero scale": (lambda t: t["fc.weight_scale"].fill_(0), r"fc\.weight_scale.*positive"),
    "negative scale": (lambda t: t["fc.weight_scale"].fill_(-1), r"fc\.weight_scale.*positive"),
    "infinite scale": (lambda t: t["fc.weight_scale"].fill_(float("inf")), r"fc\.weight_scale.*positive"),
    "scale type": (
        lambda t: t.update({"fc.weight_scale": t["fc.weight_scale"].double()}),
        r"fc\.weight_scale.*float32",
    ),
    "unknown type": (lambda t: t.update(bias=t["bias"].to(torch.complex64)), r"'bias'.*int32"),
    "words": (lambda t: t.update({"fc.weight_packed": t["fc.weight_packed"][:, 1:].clone()}), r"fc\.weight_packed"),
    "zero point": (lambda t: t["block3.conv2.weight_zero_point"].fill_(9), r"block3\.conv2\.weight_zero_point"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_wrong_tensors_are_refused(case: str, damage: Damage) -> None:
    change, message = TENSORS[case]
    with pytest.raises(ArtifactError, match=message) as error:
        checkpoint.read(damage(tensors=change))
    assert "\n" not in str(error.value)


def _node(node: str, /, **fields: Any) -> Callable[[Any], object]:
    def change(config: Any) -> None:
        next(n for n in config["nodes"] if n["name"] == node).update(fields)

    return change


def _attribute(node: str, /, **attrs: Any) -> Callable[[Any], object]:
    def change(config: Any) -> None:
        next(n for n in config["nodes"] if n["name"] == node)["attrs"].update(attrs)

    return change


def _rename(config: Any, old: str, new: str) -> None:
    for node in config["nodes"]:
        node["name"] = new if node["name"] == old else node["name"]


CONFIGS: dict[str, tuple[Callable[[Any], object], str]] = {
    "newer version": (lambda c: c.update(format_version=3), "format_version 3.*upgrade"),
    "older version": (lambda c: c.update(format_version=1), "format_version 1.*again by its recipe"),
    "version type": (lambda c: c.update(format_version=True), "format_version True"),
    "field missing": (lambda c: c.pop("labels"), "'labels' is missing"),
    "field unknown": (lambda c: c.update(code="x"), "'code' is unknown"),
    "semantics": (lambda c: c.update(semantics="os"), "semantics 'os'"),
    "labels": (lambda c: c.update(labels=[1, 2]), "labels"),
    "preprocess": (lambda c: c["preprocess"].update(std=[0.0, 0.0, 0.0]), "preprocess"),
    "no nodes": (lambda c: c.update(nodes=[]), "nodes"),
    "operation": (_node("add", op="system"), "operation 'system'"),
    "operation type": (_node("add", op=["add"]), "operation"),
    "cycle": (_node("add", inputs=["add", "add"]), "earlier nodes"),
    "arity": (_node("add", inputs=["input"]), "takes 2 inputs"),
    "name": (_node("fc", name="../fc"), "dotted identifier"),
    "scale": (_node("add", out={"bits": 8}), "out"),
    "huge image": (lambda c: c.update(input_shape=[3, 10**9, 10**9]), "input_shape"),
    "image": (lambda c: c.update(input_shape=[5, 16, 16]), "do not fit together"),
    "bits": (lambda c: c["nodes"][1]["weight"].update(bits=1), "bits"),
    "huge weight": (lambda c: c["nodes"][1]["weight"].update(shape=[10**6, 10**6, 1, 1]), "beyond any edge network"),
    "float bits": (lambda c: c["nodes"][1]["weight"].update(bits=4.0), "bits"),
    "float size": (lambda c: c["nodes"][1]["attrs"].update(stride=[1.0, 1.0]), "stride"),
    "nan scale": (lambda c: c["nodes"][1]["out"].update(scale=float("nan")), "not allowed"),
    "zero scale": (lambda c: c["nodes"][1]["out"].update(scale=0), "scale"),
    "tiny scale": (lambda c: c["nodes"][1]["out"].update(scale=1e-320), "scale"),
    "endless scale": (lambda c: c["nodes"][1]["out"].update(scale=10**400), "scale"),
    "zero point": (lambda c: c["nodes"][1]["out"].update(zero_point=300), "zero_point"),
    "codes of a format": (lambda c: c["nodes"][1]["out"].update(qmax=1000), "qmax"),
    "sum of two sizes": (_attribute("block2.conv1", stride=[99, 99]), "do not fit together"),
    "sum that broadcasts": (_attribute("block2.shortcut", stride=[99, 99]), "do not fit together"),
    "linear of a picture": (_node("fc", inputs=["add_2"]), "do not fit together"),
    "scale of 64 bits": (lambda c: c["nodes"][1]["out"].update(scale=0.1), "no float32"),
    "classes": (lambda c: c.update(num_classes=9), "num_classes"),
    "number of labels": (lambda c: c.update(labels=["a", "b"]), "labels"),
    "name type": (lambda c: c.update(name=7), "name must be a text"),
    "provenance type": (lambda c: c.update(provenance=[]), "provenance must be a mapping"),
    "preprocess type": (lambda c: c.update(preprocess=3), "preprocess must be a mapping"),
    "preprocess field": (lambda c: c["preprocess"].update(code="x"), "preprocess.*code"),
    "preprocess size": (lambda c: c["preprocess"].update(size=[16, 17]), "preprocess makes"),
    "preprocess float size": (lambda c: c["preprocess"].update(size=[16.0, 16.0]), "whole numbers"),
    "endless mean": (lambda c: c["preprocess"].update(mean=[10**400] * 3), "preprocess"),
    "huge resize": (lambda c: c["preprocess"].update(resize=10**9), "integers"),
    "keyword": (lambda c: _rename(c, "fc", "class"), "dotted identifier"),
    "name of the generated code": (lambda c: _rename(c, "fc", "self"), "dotted identifier"),
    "name of a method": (lambda c: _rename(c, "fc", "forward"), "dotted identifier"),
    "name of an attribute": (lambda c: _rename(c, "fc", "__class__"), "dotted identifier"),
    "name within a node": (lambda c: _rename(c, "fc", "conv.weight"), "lies within another"),
    "logits that are pictures": (lambda c: c["nodes"].__delitem__(slice(-2, None)), "belongs to no node"),
    "groups": (_attribute("block2.conv1", groups=2), "does not take 16 channels"),
    "endless padding": (_attribute("conv", pad=[4089] * 4), "beyond any edge network"),
    "attribute": (lambda c: c["nodes"][1]["attrs"].update(groups=[1]), "groups"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_wrong_configurations_are_refused(case: str, damage: Damage) -> None:
    change, message = CONFIGS[case]
    with pytest.raises(ArtifactError, match=message) as error:
        checkpoint.read(damage(config=change))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    ['{"a": 1, "a": 2}', '{"a": NaN}', '{"a": 1e999}', "[" * 100_000, "1" * 9999, "", "{", "[1]", "null", "\ufeff{}"],
)
def test_malformed_json_is_refused(text: str, folder: Path) -> None:
    (folder / "config.json").write_text(text)
    sign(folder)
    with pytest.raises(ArtifactError, match=r"config\.json"):
        checkpoint.read(folder)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "link"])
def test_a_manifest_cannot_name_files_elsewhere(name: str, folder: Path) -> None:
    (folder.parent / "outside").write_text("x")
    (folder / "link").symlink_to(folder.parent / "outside")
    manifest = json.loads((folder / files.MANIFEST).read_text())
    manifest["files"][name] = {"sha256": files.sha256(folder.parent / "outside"), "size": 1}
    (folder / files.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=r"leaves the folder|not a file of this folder"):
        checkpoint.read(folder)


MANIFESTS: dict[str, tuple[Callable[[Any], object], str]] = {
    "version": (lambda m: m.update(format_version=2), "format_version 2"),
    "files": (lambda m: m.update(files=[]), "must list"),
    "weights": (lambda m: m["files"].pop("model.safetensors"), "must list"),
    "entry": (lambda m: m["files"].update({"config.json": 1}), "not a file of this folder"),
    "hash": (lambda m: m["files"]["config.json"].update(sha256=5), "manifest says"),
    "long name": (lambda m: m["files"].update({"x" * 5000: {}}), "missing"),
    "null name": (lambda m: m["files"].update({"a\0b": {}}), "missing"),
    "surrogate": (lambda m: m["files"].update({"\ud800": {}}), "missing"),
    "folder": (lambda m: m["files"].update({"": {}}), "not a file of this folder"),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_wrong_manifests_are_refused(case: str, folder: Path) -> None:
    change, message = MANIFESTS[case]
    manifest = json.loads((folder / files.MANIFEST).read_text())
    change(manifest)
    (folder / files.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=message) as error:
        checkpoint.read(folder)
    assert "\n" not in str(error.value)


def test_text_that_is_none_is_refused_behind_a_valid_hash(folder: Path) -> None:
    for name in ("README.md", "recipe.yaml", "metrics.json", "config.json"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(b"\xff\xfe")
        sign(folder)
        with pytest.raises(ArtifactError, match=name.replace(".", r"\.")):
            checkpoint.read(folder)
        (folder / name).write_bytes(content)


@torch.no_grad()
def test_a_layer_may_have_the_name_of_ours(damage: Damage, network: Network) -> None:
    folder = damage(
        tensors=lambda t: [t.update({k.replace("fc.", "dequantize."): t.pop(k)}) for k in list(t) if k[:3] == "fc."],
        config=lambda c: _rename(c, "fc", "dequantize"),
    )
    assert torch.equal(zoo.load(folder, integer=True)(images(4)), network(images(4)))


def test_logits_that_are_pictures_are_refused(damage: Damage) -> None:
    def cut(config: Any) -> None:
        del config["nodes"][-2:]
        config.update(num_classes=64)

    def drop(tensors: dict[str, Any]) -> None:
        tensors["bias"] = tensors["bias"][: -len(tensors["fc.weight_scale"])].clone()
        for key in [k for k in tensors if k.startswith("fc.")]:
            del tensors[key]

    folder = damage(tensors=drop, config=cut)
    with pytest.raises(ArtifactError, match=r"a classifier gives \[N, classes\]"):
        checkpoint.read(folder)


def test_a_long_chain_of_nodes_loads(damage: Damage, network: Network) -> None:
    """A format is looked up through all of them, without recursion."""

    def chain(config: Any) -> None:
        before = config["nodes"][-1]["inputs"][0]
        for i in range(1024 - len(config["nodes"])):
            config["nodes"].insert(-1, {"name": f"flat_{i}", "op": "flatten", "inputs": [before]})
            before = f"flat_{i}"
        config["nodes"][-1]["inputs"] = [before]

    folder = damage(config=chain)
    with torch.no_grad():
        assert torch.equal(checkpoint.read(folder).network(integer=True)(images(2)), network(images(2)))


@pytest.mark.parametrize("name", ["manifest.json", "config.json", "model.safetensors", "README.md"])
def test_only_regular_files_of_the_folder_are_read(name: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes((folder / name).read_bytes())
    for kind in ("pipe", "device", "link", "loop", "folder"):
        (folder / name).rmdir() if (folder / name).is_dir() else (folder / name).unlink()
        if kind == "pipe":
            os.mkfifo(folder / name)
        elif kind == "folder":
            (folder / name).mkdir()
        else:
            (folder / name).symlink_to({"device": "/dev/zero", "link": "../outside", "loop": name}[kind])
        with pytest.raises(ArtifactError, match=name.replace(".", r"\.")):  # and it returns: a pipe would wait
            checkpoint.read(folder)


def test_texts_beyond_all_bounds_are_refused_unread(folder: Path) -> None:
    for name in ("README.md", "config.json", files.MANIFEST):
        content = (folder / name).read_bytes()
        with (folder / name).open("r+b") as file:
            file.truncate(2**40)  # a sparse file: a terabyte that takes no disk
        with pytest.raises(ArtifactError, match="bytes, at most"):
            files.regular(folder / name, name)
        (folder / name).write_bytes(content)


def test_what_changes_after_loading_changes_nothing(folder: Path, network: Network) -> None:
    loaded = zoo.load(folder, integer=True)
    size = (folder / "model.safetensors").stat().st_size
    with (folder / "model.safetensors").open("r+b") as file:
        file.write(b"\0" * size)
        file.truncate(0)
    with torch.no_grad():
        assert torch.equal(loaded(images(2)), network(images(2)))


def test_a_manifest_cannot_ask_for_one_file_many_times(folder: Path) -> None:
    manifest = json.loads((folder / files.MANIFEST).read_text())
    entry = manifest["files"]["config.json"]
    for names, message in ((["./config.json"], "not a file"), ([f"a{i}" for i in range(2000)], "lists 2,0")):
        changed = manifest | {"files": manifest["files"] | {n: entry for n in names}}
        (folder / files.MANIFEST).write_text(json.dumps(changed))
        with pytest.raises(ArtifactError, match=message):
            checkpoint.read(folder)


def test_a_type_that_torch_has_not_is_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].replace(b'"I8"', b'"F8_E8M0"', 1)  # a byte each, as I8: only the name is new
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    sign(folder)
    with pytest.raises(ArtifactError, match=r"model\.safetensors|weight_packed"):
        checkpoint.read(folder)
