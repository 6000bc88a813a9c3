from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from tests.weights.samples import mirrored, model, sha256, state
from zoo.data._sources import mirror as find
from zoo.errors import ModelError, RecipeError
from zoo.paths import recipes_dir
from zoo.resolve import build
from zoo.weights import ModelConfig, Source, WeightConfig, build_model, load_weights, tensors_sha256
from zoo.weights.sources import parse

MODELS = sorted((recipes_dir() / "model").glob("*.yaml"))


def read(path: Path) -> ModelConfig:
    return build(ModelConfig, yaml.safe_load(path.read_text(encoding="utf-8")), "model")


def mirror_sources(path: Path) -> list[Source]:
    weights = read(path).weights
    return [s for s in weights.sources if s.kind == "mirror"] if weights else []


def test_build_model_holds_exactly_the_weights(mirror: Path) -> None:
    net = build_model(model(mirrored(mirror)))
    assert not net.training
    found = {n: t for n, t in net.state_dict().items() if not n.endswith("num_batches_tracked")}
    assert found.keys() == state().keys() and all(torch.equal(found[n], t) for n, t in state().items())


def test_build_model_without_weights_is_random(mirror: Path) -> None:
    config = model(mirrored(mirror))
    torch.manual_seed(1)
    random = build_model(config, False).state_dict()
    torch.manual_seed(1)
    assert all(torch.equal(t, random[n]) for n, t in build_model(config, {}).state_dict().items())
    assert not torch.equal(random["conv.weight"], state()["conv.weight"])


def test_loading_draws_nothing_from_the_random_generator(mirror: Path) -> None:
    config = model(mirrored(mirror))
    before = torch.random.get_rng_state()
    load_weights(config)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("fc.bias"), r"tensor 'fc\.bias' is missing \(and 0 more\)"),
        (lambda s: s.update(extra=torch.zeros(1)), r"tensor 'extra' has no place \(and 0 more\)"),
        (lambda s: s.update({"fc.weight": torch.zeros(100, 64)}), r"shape \[100, 64\], the network needs \[10, 64\]"),
        (lambda s: s.update({"fc.bias": torch.zeros(10, dtype=torch.int8)}), r"fc\.bias .*torch\.int8, expected"),
        (lambda s: s.update({"fc.bias": torch.zeros(10, dtype=torch.complex64)}), r"fc\.bias .*torch\.complex64"),
    ],
)  # fmt: skip
def test_weights_of_another_network_are_refused(mirror: Path, change, message: str) -> None:
    tensors = state()
    change(tensors)
    with pytest.raises(ModelError, match=message) as caught:
        load_weights(model(mirrored(mirror, save(tensors))))
    assert str(caught.value).startswith("net: ") and "\n" not in str(caught.value)


def test_other_model_args_are_refused(mirror: Path) -> None:
    with pytest.raises(ModelError, match=r"conv\.weight has shape \[16, 1, 3, 3\], the network needs \[16, 3, 3, 3\]"):
        load_weights(model(mirrored(mirror), in_channels=3))
    with pytest.raises(RecipeError, match=r"^model\.args: .*'width' \(known: "):
        build_model(model(width=2))
    with pytest.raises(ModelError, match=r"'fc\.bias' is missing"):
        build_model(model(), {n: t for n, t in state().items() if n != "fc.bias"})


def test_half_precision_files_become_float32(mirror: Path) -> None:
    tensors, record = load_weights(model(mirrored(mirror, save({n: t.half() for n, t in state().items()}))))
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    assert record["tensors_sha256"] == tensors_sha256({n: t.half().float() for n, t in state().items()})


def test_step_counters_may_be_there_or_not(mirror: Path) -> None:
    tensors = state() | {"bn.num_batches_tracked": torch.tensor(5)}
    found, record = load_weights(model(mirrored(mirror, save(tensors))))
    assert found.keys() == state().keys() and record["tensors_sha256"] == tensors_sha256(state())


def test_content_hash_by_the_book() -> None:
    tensors = {"b": torch.tensor([[1.5, -2.0]]), "a": torch.tensor(3.0)}
    digest = hashlib.sha256()
    for name, shape, values in (("a", [], [3.0]), ("b", [1, 2], [1.5, -2.0])):
        digest.update(json.dumps([name, shape]).encode() + struct.pack(f"<{len(values)}f", *values))
    assert tensors_sha256(tensors) == digest.hexdigest()
    assert tensors_sha256(dict(reversed(tensors.items()))) == digest.hexdigest()


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.zeros(2, 3), "b": torch.full((2,), 1e-45)},
        {"a": torch.zeros(3, 2), "b": torch.zeros(2)},
        {"a": torch.zeros(2, 3), "c": torch.zeros(2)},
        {"a": torch.zeros(2, 3)},
        {"a": torch.zeros(2, 3), "b": -torch.zeros(2)},
    ],
)
def test_content_hash_sees_every_change(other: dict[str, torch.Tensor]) -> None:
    assert tensors_sha256(other) != tensors_sha256({"a": torch.zeros(2, 3), "b": torch.zeros(2)})


def test_content_hash_does_not_see_the_memory_order() -> None:
    image = torch.rand(2, 3, 4, 4)
    assert tensors_sha256({"a": image.to(memory_format=torch.channels_last)}) == tensors_sha256({"a": image})


SMALL = save({"conv.weight": torch.rand(4, 3, 3, 3), "conv.bias": torch.rand(4)})


@settings(deadline=None)
@given(st.integers(0, len(SMALL) - 1))
def test_cut_file_is_refused(length: int) -> None:
    with pytest.raises(ModelError, match=r"^net: not a readable safetensors file \(.*\); fetch it again$"):
        parse(SMALL[:length], "net")


@settings(deadline=None, max_examples=300)
@given(st.integers(0, len(SMALL) - 1), st.integers(1, 255))
def test_altered_byte_is_refused_or_read_as_other_tensors(place: int, change: int) -> None:
    """Nothing but ModelError, whichever byte is wrong, and never the same tensors."""
    data = bytearray(SMALL)
    data[place] ^= change
    try:
        found = parse(bytes(data), "net")
    except ModelError as error:
        assert "\n" not in str(error)
        return
    good = parse(SMALL, "net")
    if any(t.is_floating_point() for t in found.values()):
        same = found.keys() == good.keys() and all(
            t.dtype == good[n].dtype and t.shape == good[n].shape and t.numpy().tobytes() == good[n].numpy().tobytes()
            for n, t in found.items()
        )
        header = 8 + struct.unpack("<Q", SMALL[:8])[0]
        assert not same or place < header  # white space of the header carries nothing


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "mirror"}, "a source of kind 'mirror' needs 'path'"),
        ({"kind": "url", "path": "x"}, "a source of kind 'url' needs 'url'"),
        ({"kind": "hub", "repo_id": "a/b", "path": "x"}, "needs 'revision'"),
        ({"kind": "url", "url": "file:///etc/passwd"}, "url must begin with https://"),
        ({"kind": "mirror", "path": "x", "sha256": "ABC"}, "64 lower-case hexadecimal digits, got 'ABC'"),
        ({"kind": "ftp", "path": "x"}, "'ftp' is unknown"),
        ({"kind": "mirror", "path": "x"}, "mirror:x: give its sha256, or a tensors_sha256 for all sources"),
    ],
)
def test_a_source_that_cannot_be_verified_or_found_is_refused(fields: dict[str, str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build(WeightConfig, {"sources": [fields]}, "model.weights")


def test_weights_without_sources_are_refused() -> None:
    with pytest.raises(ValueError, match="write 'weights: null'"):
        WeightConfig(())
    with pytest.raises(RecipeError, match="preprocess"):
        build(ModelConfig, {"name": "n", "builder": "resnet8", "preprocess": {"mean": [1.0, 2.0]}}, "model")


@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.stem)
def test_shipped_model_builds_and_its_weights_are_verified(path: Path) -> None:
    config = read(path)
    assert config.name == path.stem and config.description and config.license != "unknown"
    with torch.device("meta"), torch.no_grad():
        net = build_model(config, False)
        logits = net(torch.empty(1, len(config.preprocess["mean"]), *config.preprocess["size"]))
    assert logits.shape == (1, 1000 if config.labels == "imagenet" else 10)
    for source in config.weights.sources if config.weights else ():
        assert source.sha256 or config.weights.tensors_sha256
        assert source.kind in ("mirror", "package") or config.weights.tensors_sha256


@pytest.mark.data
@pytest.mark.parametrize("path", [p for p in MODELS if mirror_sources(p)], ids=lambda p: p.stem)
def test_mirror_file_has_the_recorded_content(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZOO_MIRROR")
    config, source = read(path), mirror_sources(path)[0]
    if find(source.path) is None:
        pytest.skip("needs the float weights of ../shared")
    _, record = load_weights(config, offline=True)
    assert record["source"] == source.label
    assert config.weights is not None and config.weights.tensors_sha256 == record["tensors_sha256"]


def test_labels_hold_no_path_of_the_machine() -> None:
    sources = (
        Source("mirror", sha256(b""), "weights/a"),
        Source("hub", sha256(b""), "a", repo_id="someone/net", revision="main"),
    )
    assert [s.label for s in sources] == ["mirror:weights/a", "someone/net"]
