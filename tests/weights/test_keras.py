from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save as save_arrays
from safetensors.torch import save

from tests.weights import keras_files
from tests.weights.conftest import Publisher
from tests.weights.samples import mirrored, model, sha256, state
from zoo.errors import ModelError
from zoo.models import mobilenetv1
from zoo.weights import ModelConfig, Source, WeightConfig, build_model, load_weights, tensors_sha256
from zoo.weights.keras import read_h5


def need_h5py() -> None:
    pytest.importorskip("h5py", reason="needs the extra 'keras': pip install 'lowbit-zoo[keras]'")


def contiguous(arrays: keras_files.Arrays) -> keras_files.Arrays:
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def small_mobilenet(*sources: Source, tensors: str = "") -> ModelConfig:
    weights = WeightConfig(sources, "keras_mobilenetv1", tensors) if sources else None
    preprocess = {"size": [64, 64], "mean": [127.5] * 3, "std": [127.5] * 3}
    return ModelConfig("small", "mobilenetv1", preprocess, {"width": 0.25, "num_classes": 7}, weights=weights)


@pytest.mark.parametrize("whole_model", [False, True])
def test_resnet8_from_h5(mirror: Path, whole_model: bool) -> None:
    need_h5py()
    source = mirrored(mirror, keras_files.h5(keras_files.resnet8(state()), whole_model=whole_model))
    found, record = load_weights(model(source, layout="keras_resnet8"))
    wanted = state()
    assert found.keys() == wanted.keys() and all(torch.equal(found[n], t) for n, t in wanted.items())
    assert record["tensors_sha256"] == tensors_sha256(wanted)


def test_mobilenetv1_from_h5(mirror: Path) -> None:
    need_h5py()
    torch.manual_seed(0)
    wanted = {n: t for n, t in mobilenetv1.build(0.25, 7).state_dict().items() if "num_batches" not in n}
    wanted = {n: torch.rand_like(t) for n, t in wanted.items()}
    source = mirrored(mirror, keras_files.h5(keras_files.mobilenetv1(wanted)))
    found, _ = load_weights(small_mobilenet(source))
    assert found.keys() == wanted.keys() and all(torch.equal(found[n], t) for n, t in wanted.items())


def test_the_content_hash_does_not_depend_on_the_file(mirror: Path) -> None:
    """Ours as safetensors, Keras's layout as safetensors, and Keras's two kinds of .h5."""
    need_h5py()
    arrays = keras_files.resnet8(state())
    files = {
        "torch": [save(state())],
        "keras_resnet8": [
            save_arrays(contiguous(arrays)), keras_files.h5(arrays), keras_files.h5(arrays, whole_model=True)
        ],
    }  # fmt: skip
    records = [
        load_weights(model(mirrored(mirror, data), layout=layout))[1] for layout, some in files.items() for data in some
    ]
    assert {r["tensors_sha256"] for r in records} == {tensors_sha256(state())}
    assert len({r["sha256"] for r in records}) == 4


def test_keras_layout_computes_what_keras_computes(mirror: Path) -> None:
    """The stem and the first depthwise layer of MobileNetV1 by TensorFlow's definition, on Keras's own arrays."""
    need_h5py()
    torch.manual_seed(0)
    base = {n: torch.rand_like(t) for n, t in mobilenetv1.build(0.25, 7).state_dict().items() if "num_batches" not in n}
    arrays = keras_files.mobilenetv1(base)
    net = build_model(small_mobilenet(mirrored(mirror, keras_files.h5(arrays))))
    image = np.random.default_rng(0).random((8, 8, 3))

    def window(x: np.ndarray, size: int, stride: int, row: int, column: int) -> np.ndarray:
        """SAME: even sizes are padded at the end only where the stride is 2, on both sides where it is 1."""
        start = 0 if stride == 2 else 1
        padded = np.pad(x, ((start, 1), (start, 1), (0, 0)))
        return padded[row * stride : row * stride + size, column * stride : column * stride + size]

    kernel, depthwise = arrays["conv1/kernel"], arrays["conv_dw_1/depthwise_kernel"]
    stem = np.array(
        [[np.einsum("hwi,hwio->o", window(image, 3, 2, r, c), kernel) for c in range(4)] for r in range(4)]
    )  # fmt: skip
    deep = np.array(
        [[np.einsum("hwi,hwi->i", window(stem, 3, 1, r, c), depthwise[..., 0]) for c in range(4)] for r in range(4)]
    )
    x = torch.tensor(image, dtype=torch.float32).permute(2, 0, 1)[None]
    with torch.no_grad():
        ours = net.conv1(net.conv1_pad(x))
        ours_deep = net.conv_dw_1(ours)
    np.testing.assert_allclose(ours[0].permute(1, 2, 0).numpy(), stem, rtol=1e-5)
    np.testing.assert_allclose(ours_deep[0].permute(1, 2, 0).numpy(), deep, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("conv2d_8/bias"), r"'conv2d_8/bias' is missing; this is another network's file"),
        (lambda a: a.pop("batch_normalization_6/gamma"), r"'batch_normalization_6/gamma' is missing"),
        (lambda a: a.update({"conv2d_9/kernel": np.zeros((1, 1, 2, 2))}), r"'conv2d_9/kernel' has no place"),
        (lambda a: a.update({"dense/kernel": np.zeros(64)}), r"'dense/kernel' has shape \[64\], expected 2 axes"),
        (lambda a: a.update({"conv2d/kernel": np.zeros((3, 3, 3, 16))}), r"conv.weight has shape \[16, 3, 3, 3\]"),
    ],
)
def test_another_networks_file_is_refused(mirror: Path, change, message: str) -> None:
    need_h5py()
    arrays = keras_files.resnet8(state())
    change(arrays)
    with pytest.raises(ModelError, match=message) as caught:
        load_weights(model(mirrored(mirror, keras_files.h5(arrays)), layout="keras_resnet8"))
    assert "mirror:weights/net.safetensors" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("part", [0.3, 0.9, 0.999])
def test_cut_h5_is_refused(part: float) -> None:
    need_h5py()
    data = keras_files.h5(keras_files.resnet8(state()))
    with pytest.raises(ModelError, match=r"^net: not a readable Keras .h5 file \(.*\); fetch it again$"):
        read_h5(data[: int(len(data) * part)], "net")


def test_odd_h5_content_is_refused() -> None:
    need_h5py()
    import h5py

    def written(fill) -> bytes:
        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file:
            fill(file)
        return buffer.getvalue()

    twice = written(lambda f: [f.create_dataset(f"conv/{scope}/kernel:0", data=np.zeros(1)) for scope in "ab"])
    with pytest.raises(ModelError, match=r"holds 'conv/kernel' twice"):
        read_h5(twice, "net")
    with pytest.raises(ModelError, match="not a readable Keras"):
        read_h5(written(lambda f: f.create_dataset("conv/kernel:0", data="words")), "net")
    with pytest.raises(ModelError, match="not a readable Keras"):
        read_h5(written(lambda f: f.create_dataset("model_weights", data=np.zeros(3))), "net")
    huge = written(lambda f: f.create_dataset("conv/kernel:0", shape=(2**40,), dtype="f4", chunks=(2**20,)))
    assert len(huge) < 10_000
    with pytest.raises(ModelError, match=r"'conv/kernel:0' claims 1099511627776 values"):
        read_h5(huge, "net")


def test_links_out_of_the_file_are_not_followed(tmp_path: Path) -> None:
    need_h5py()
    import h5py

    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["secret"] = np.ones(3)
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file["conv/kernel:0"] = np.zeros(2)
        file["conv/bias:0"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "secret")
    assert list(read_h5(buffer.getvalue(), "net")) == ["conv/kernel"]


def test_missing_h5py_names_the_extra(
    mirror: Path, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "h5py", None)
    data = b"\x89HDF\r\n\x1a\n" + bytes(100)
    with pytest.raises(ModelError, match=r"^mirror:weights/net.safetensors: .*pip install 'lowbit-zoo\[keras\]'$"):
        load_weights(model(mirrored(mirror, data), layout="keras_resnet8"))
    url = Source("url", sha256(data), url=f"{publisher.address}/net.h5")
    with pytest.raises(ModelError, match=r"net: no float weights: .*/net.h5 needs the extra 'keras': pip install"):
        load_weights(model(url, layout="keras_resnet8"))
    assert publisher.asked == []
