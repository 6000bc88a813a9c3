"""The model card: valid front matter, and every number is one of the arguments."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.records import make_record
from zoo.artifact.card import render_card


def layer(name: str, op: str, source: str, weight: int, output: int, groups: int = 1) -> dict[str, Any]:
    formats = {"out": out(output), "weight": {"bits": weight}}
    return {"name": name, "op": op, "inputs": [source], "attrs": {"groups": groups}, **formats}


def out(bits: int) -> dict[str, Any]:
    return {"bits": bits, "signed": True, "qmin": 0, "qmax": 1, "scale": 0.5, "zero_point": 0}


CONFIG: dict[str, Any] = {
    "nodes": [
        {"name": "image_codes", "op": "input", "inputs": [], "out": out(8)},
        layer("stem", "conv2d", "image_codes", 8, 8),
        layer("b1", "conv2d", "stem", 4, 4),
        layer("b2", "conv2d", "b1", 4, 4, groups=16),
        {"name": "sum", "op": "add", "inputs": ["stem", "b2"], "out": out(5)},
        {"name": "pool", "op": "mean", "inputs": ["sum"], "out": out(7)},
        {"name": "flat", "op": "flatten", "inputs": ["pool"], "out": None},
        layer("fc", "linear", "flat", 8, 16),
    ],
    "license": "mit",
    "preprocess": {"size": [32, 32], "mean": [1.5]},
}  # fmt: skip


def card(**changes: Any) -> str:
    return render_card(make_record(**changes).to_dict(), CONFIG, {"config.json": "1" * 64})


def front(text: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return loaded


def test_front_matter() -> None:
    fields = front(card())
    assert fields["license"] == "mit" and fields["library_name"] == "lowbit-zoo"
    assert fields["pipeline_tag"] == "image-classification" and fields["base_model_relation"] == "quantized"
    assert fields["base_model"] == ["org/toy-float"]
    assert {"int4", "int8", "w4a8", "ptq", "adaround"} <= set(fields["tags"]) and "qat" not in fields["tags"]
    (result,) = fields["model-index"][0]["results"]
    assert result["dataset"]["name"] == "shapes" and result["dataset"]["split"] == "full"
    assert result["metrics"][0]["value"] == 88.5 and result["metrics"][0]["args"] == {"n": 200, "seeds": [0]}


def test_a_step_with_settings_gives_its_tag() -> None:
    text = card(steps=("quantize", '{"distill": {"epochs": 2}}'))
    assert "distill" in front(text)["tags"] and '`{"distill": {"epochs": 2}}`' in text


def test_awkward_names_stay_valid_yaml() -> None:
    fields = front(card(recipe='a: "b" #c', model="x"))
    assert fields["model-index"][0]["name"] == 'a: "b" #c'


def test_a_source_that_is_no_hub_id_gives_no_base_model() -> None:
    assert "base_model" not in front(card(parent=type(make_record().parent)("a local file", "e" * 64)))


def test_bits_per_layer_group_and_tensor() -> None:
    text = card()
    assert "| layers | count | weight bits | input bits | output bits |" in text
    assert "| convolution (`stem`) | 1 | 8 | 8 | 8 |" in text
    assert "| convolution (`b1`) | 1 | 4 | 8 | 4 |" in text
    assert "| grouped or depthwise convolution (`b2`) | 1 | 4 | 4 | 4 |" in text
    # a flattened tensor has the bits of the pool's
    assert "| fully connected (`fc`) | 1 | 8 | 7 | 16 |" in text
    for line in ("- network input: 8 bits", "- residual adds: 5 bits", "- pools: 7 bits", "- logits: 16 bits"):
        assert line in text


@pytest.mark.parametrize(
    "part",
    [
        "| float parent | 90.00 |", "**88.50** | -1.50 |", "| this one, fake-quantized | 88.00 | -2.00 |",
        "[-0.25, 3.25]", "99.50 %", "200 images of shapes", "12,345 bytes", "8.00 times smaller", "98,765 bytes",
        "`python -m zoo.run recipe=toy_w4a8`", "given to the steps: 64 of shapes-train", "seed 0", "`tflite`",
        "22 s on a CPU", "f" * 40, "| `model.safetensors` | `" + "d" * 64, "| `config.json` | `" + "1" * 64,
        "torch 2.15.0", "steps: `fold_batchnorm`, `quantize`,", '{"mean": [1.5], "size": [32, 32]}',
    ],
)  # fmt: skip
def test_card_says(part: str) -> None:
    assert part in card()


def test_notes_and_local_changes_are_said() -> None:
    git = type(make_record().git)("f" * 40, True)
    text = card(notes=("a remark",), git=git)
    assert "- a remark\n" in text and "with local changes" in text
    assert "with local changes" not in card()


def test_one_thread_is_one_and_seeds_are_named() -> None:
    one = type(make_record().machine)("a CPU", 1)
    assert "on a CPU, 1 thread\n" in card(machine=one) and "on a CPU, 2 threads\n" in card()
    assert "those of seed 3;" in card(seed=3) and "## What the steps noted" not in card()


def test_cost_is_said_where_it_is_known() -> None:
    text = card(macs=1_234_567, activation_bytes=8_192)
    assert "1,234,567 multiply-accumulates" in text and "8,192 bytes of activations" in text
    assert "multiply-accumulates" not in card()


def test_few_layers_are_all_named_and_of_many_the_first_and_the_last() -> None:
    def named(count: int) -> str:
        stem, *rest = CONFIG["nodes"]
        layers = [layer(f"c{i}", "conv2d", "image_codes", 4, 4) for i in range(count)]
        text = render_card(make_record().to_dict(), CONFIG | {"nodes": [stem, *layers, rest[-1] | {"inputs": ["c0"]}]})
        return next(line for line in text.splitlines() if "`c0`" in line)

    assert "(`c0`, `c1`, `c2`, `c3`) | 4 |" in named(4)
    assert "`c6`, ..., `c19`) | 20 |" in named(20)


def test_same_arguments_same_bytes() -> None:
    assert card() == card()
