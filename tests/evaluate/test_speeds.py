"""The tables of benchmarks/README.md: every cell is a number of a measured file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evaluate.speeds import speeds
from zoo.errors import ArtifactError

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


def test_cells_are_the_measured_numbers(tmp_path: Path) -> None:
    for name in ("train", "peers", "speed"):
        found = json.loads((FOLDER / f"{name}.json").read_text())
        if name == "train":
            found["ratio"]["resnet8_untrained"] |= {"native_qat_step_bf16": 7.654, "loading_share": 0.4321}
        if name == "peers":
            found["gptq"]["times_faster"]["wall"]["total"] = 9.87
        (tmp_path / f"{name}.json").write_text(json.dumps(found))
    rows = {line.split("`")[1]: line for line in speeds(tmp_path).splitlines() if line.startswith("| `")}
    assert "| 7.65 |" in rows["resnet8_untrained"] and rows["resnet8_untrained"].endswith("| 43.2 % |")
    assert rows["gptq"].startswith("| `gptq` | brevitas ") and rows["gptq"].endswith("| 9.9 |")
    assert {"resnet8", "mnv1", "mnv2", "effnet_lite0", "mobilenetv1_cifar", "adaround"} <= rows.keys()


@pytest.mark.parametrize("text", ["{", "{}"])
def test_a_broken_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "train.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"train\.json: cannot be rendered"):
        speeds(tmp_path)
