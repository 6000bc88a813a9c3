from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import save

from tests.weights.conftest import Publisher
from tests.weights.samples import mirrored, model, sha256, state
from zoo import paths
from zoo.errors import ModelError
from zoo.weights import Source, load_weights, tensors_sha256

HUB = Source("hub", "", "model.safetensors", repo_id="someone/net", revision="main")


def cached(tmp_path: Path) -> list[Path]:
    return sorted(p for p in (tmp_path / "cache").rglob("*") if p.is_file())


def same(found: dict[str, torch.Tensor], seed: int = 0) -> bool:
    wanted = state(seed)
    return found.keys() == wanted.keys() and all(torch.equal(found[name], t) for name, t in wanted.items())


def test_mirror(mirror: Path) -> None:
    source = mirrored(mirror)
    tensors, record = load_weights(model(source))
    assert same(tensors)
    assert record["source"] == "mirror:weights/net.safetensors" and record["sha256"] == source.sha256
    assert record["tensors_sha256"] == tensors_sha256(state())


def test_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "results_dir", lambda: tmp_path / "results")
    source = mirrored(tmp_path / "results", name="weights/own.safetensors")
    tensors, record = load_weights(model(Source("package", source.sha256, source.path)))
    assert same(tensors) and record["source"] == "package:weights/own.safetensors"
    other = model(Source("package", "0" * 64, source.path))
    with pytest.raises(
        ModelError, match=r"own\.safetensors: .* expected 000000000000; .*give model\.weights its hashes"
    ):
        load_weights(other)


def test_no_weights_is_a_random_network() -> None:
    assert load_weights(model()) == ({}, {"source": "random initialisation", "sha256": ""})


@pytest.mark.parametrize("whole_file", [True, False])
def test_url_is_downloaded_once(publisher: Publisher, tmp_path: Path, whole_file: bool) -> None:
    data = publisher.files["/net.safetensors"] = save(state())
    source = Source("url", sha256(data) if whole_file else "", url=f"{publisher.address}/net.safetensors")
    config = model(source, tensors_sha256="" if whole_file else tensors_sha256(state()))
    assert same(load_weights(config)[0])
    assert [p.read_bytes() for p in cached(tmp_path)] == [data]
    publisher.files.clear()
    tensors, record = load_weights(config, offline=True)
    assert same(tensors) and record["source"] == f"url:{source.url}"
    assert publisher.asked == ["/net.safetensors"]


@pytest.mark.parametrize("whole_file", [True, False])
@pytest.mark.parametrize("damage", ["cut", "altered"])
def test_damaged_cache_is_fetched_again(publisher: Publisher, tmp_path: Path, whole_file: bool, damage: str) -> None:
    data = publisher.files["/net.safetensors"] = save(state())
    source = Source("url", sha256(data) if whole_file else "", url=f"{publisher.address}/net.safetensors")
    config = model(source, tensors_sha256=tensors_sha256(state()))
    load_weights(config)
    (path,) = cached(tmp_path)
    path.write_bytes(data[:-5] if damage == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
    assert same(load_weights(config)[0])
    assert path.read_bytes() == data and len(publisher.asked) == 2
    path.write_bytes(data[:-5])
    with pytest.raises(ModelError, match=r"net: no float weights: .* is not in the cache"):
        load_weights(config, offline=True)


@pytest.mark.parametrize("whole_file", [True, False])
def test_other_weights_at_the_url_are_refused_and_not_kept(
    publisher: Publisher, tmp_path: Path, whole_file: bool
) -> None:
    publisher.files["/net.safetensors"] = save(state(1))
    wanted = sha256(save(state())) if whole_file else ""
    source = Source("url", wanted, url=f"{publisher.address}/net.safetensors")
    with pytest.raises(ModelError, match=r"sha256 .*expected"):
        load_weights(model(source, tensors_sha256=tensors_sha256(state())))
    assert cached(tmp_path) == []
    assert publisher.asked == ["/net.safetensors"]


def test_a_page_instead_of_a_file_is_refused(publisher: Publisher, tmp_path: Path) -> None:
    publisher.files["/net.safetensors"] = b"<!DOCTYPE html><title>Sign in</title>"
    source = Source("url", url=f"{publisher.address}/net.safetensors")
    with pytest.raises(ModelError, match=r"^url:http://127.0.0.1:\d+/net.safetensors: not a readable safetensors file"):
        load_weights(model(source, tensors_sha256="0" * 64))
    assert cached(tmp_path) == []


def test_one_name_at_two_publishers(publisher: Publisher) -> None:
    for seed in (0, 1):
        publisher.files[f"/{seed}/net.safetensors"] = save(state(seed))
    configs = [
        model(Source("url", sha256(save(state(s))), url=f"{publisher.address}/{s}/net.safetensors")) for s in (0, 1)
    ]
    assert all(same(load_weights(config)[0], seed) for _ in range(2) for seed, config in enumerate(configs))
    assert len(publisher.asked) == 2


def test_an_address_with_a_long_query_is_kept_too(publisher: Publisher, tmp_path: Path) -> None:
    place = "/net.safetensors?token=" + "x" * 400
    data = publisher.files[place] = save(state())
    config = model(Source("url", sha256(data), url=publisher.address + place))
    assert same(load_weights(config)[0]) and same(load_weights(config, offline=True)[0])
    assert [p.name.partition("-")[2] for p in cached(tmp_path)] == ["net.safetensors"]


@pytest.mark.parametrize(
    "url", ["http://[/x", "https:///x", "https://?x", "https://ex\u00e4mple.invalid/x", "https://h/x\n"]
)
def test_an_address_without_a_host_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"host|IPv6|ASCII"):
        Source("url", "0" * 64, url=url)


def test_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def download(_: Any, repo_id: str, filename: str, *, revision: str, local_files_only: bool, **more: Any) -> str:
        asked.append((repo_id, filename, revision, local_files_only))
        if not (tmp_path / "model.safetensors").exists():
            (tmp_path / "model.safetensors").write_bytes(save(state(1)))
        return str(tmp_path / "model.safetensors")

    monkeypatch.setattr(huggingface_hub.HfApi, "hf_hub_download", download)
    (tmp_path / "model.safetensors").write_bytes(save(state()))
    config = model(HUB, tensors_sha256=tensors_sha256(state()))
    for offline in (False, True):
        tensors, record = load_weights(config, offline=offline)
        assert same(tensors) and record["source"] == "someone/net"
    assert asked == [("someone/net", "model.safetensors", "main", offline) for offline in (False, True)]
    # wrong tensors are dropped from the client's cache and asked for once more, then refused
    (tmp_path / "model.safetensors").write_bytes(save(state(1)))
    asked.clear()
    with pytest.raises(ModelError, match="other weights than the recipe was made for"):
        load_weights(config)
    assert [local for *_, local in asked] == [False, True, False]


def test_a_hub_file_altered_on_the_way_is_fetched_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(_: Any, repo_id: str, filename: str, *, force_download: bool, **more: Any) -> str:
        (tmp_path / filename).write_bytes(save(state(0 if force_download else 1)))
        return str(tmp_path / filename)

    monkeypatch.setattr(huggingface_hub.HfApi, "hf_hub_download", download)
    source = Source("hub", sha256(save(state())), "model.safetensors", repo_id="someone/net", revision="main")
    assert same(load_weights(model(source))[0])


def test_sources_are_tried_in_order(mirror: Path, publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub.HfApi, "hf_hub_download", refuse)
    absent = Source("url", url=f"{publisher.address}/absent.safetensors")
    config = model(HUB, absent, mirrored(mirror), tensors_sha256=tensors_sha256(state()))
    assert load_weights(config)[1]["source"] == "mirror:weights/net.safetensors"
    assert publisher.asked == ["/absent.safetensors"]
    (mirror / "weights" / "net.safetensors").unlink()
    with pytest.raises(ModelError) as caught:
        load_weights(config)
    message = str(caught.value)
    assert message.startswith("net: no float weights: hub someone/net@main: ")
    assert "/absent.safetensors: no download (Not Found)" in message
    assert "weights/net.safetensors is absent" in message and message.endswith(
        "go online, or set ZOO_MIRROR to a folder that holds them"
    )


def test_offline_asks_no_server(publisher: Publisher) -> None:
    publisher.files["/net.safetensors"] = save(state())
    source = Source("url", url=f"{publisher.address}/net.safetensors")
    with pytest.raises(ModelError, match=re.escape(f"{source.url} is not in the cache")):
        load_weights(model(source, tensors_sha256=tensors_sha256(state())), offline=True)
    assert publisher.asked == []


@pytest.mark.parametrize("damage", ["altered", "cut"])
def test_a_damaged_file_stops_the_search(mirror: Path, damage: str) -> None:
    """Another source could hide that somebody changed the file."""
    source, good = mirrored(mirror), mirrored(mirror, name="weights/copy.safetensors")
    path = mirror / source.path
    data = path.read_bytes()
    path.write_bytes(data[:-100] if damage == "cut" else data[:-1] + bytes([data[-1] ^ 128]))
    with pytest.raises(ModelError, match=rf"net.safetensors: sha256 is .{{12}}, expected {source.sha256[:12]}; .*cut"):
        load_weights(model(source, good))


def test_a_full_disk_costs_only_the_cache(
    publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher.files["/net.safetensors"] = save(state())
    (tmp_path / "cache").write_text("a file where the folder should be")
    source = Source("url", url=f"{publisher.address}/net.safetensors")
    assert same(load_weights(model(source, tensors_sha256=tensors_sha256(state())))[0])
