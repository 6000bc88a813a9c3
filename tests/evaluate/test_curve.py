"""Learning curves: drawn from the CSV of a training and from nothing else."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from evaluate.curve import main
from zoo.train.log import csv_text

SVG = "{http://www.w3.org/2000/svg}"


def row(epoch: int, position: int = 2, **more: Any) -> dict[str, Any]:
    fields = {"position": position, "epoch": epoch, "step": epoch, "lr": 0.1, "loss": 2.0 / epoch,
              "accuracy": 40.0 + epoch, "holdout": None, "images_per_second": 5.0}  # fmt: skip
    return fields | more


def test_a_curve_has_a_point_per_epoch_and_a_line_per_stage(tmp_path: Path) -> None:
    path = tmp_path / "toy<2>.csv"
    path.write_text(csv_text([row(1), row(2, holdout=50.0), row(1, 4), row(2, 4, holdout=60.0)]))
    assert main([str(path)]) == 0
    drawn = ET.parse(path.with_suffix(".svg")).getroot()
    lines = [line.attrib["points"].split() for line in drawn.iter(f"{SVG}polyline")]
    assert sorted(map(len, lines)) == [2, 4, 4]
    assert sum("stroke-dasharray" in p.attrib for p in drawn.iter(f"{SVG}path")) == 1
    # a smaller loss stands lower: larger y
    loss = next(line for line in lines if len(line) == 4)
    heights = [float(point.split(",")[1]) for point in loss]
    assert heights[0] < heights[1] and heights[0] == heights[2]


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", "loss,accuracy\nx,1\n", "loss,accuracy\nnan,1\n"])
def test_a_file_that_is_no_training_is_refused_in_one_line(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "toy.csv"
    path.write_text(content)
    assert main([str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "toy.csv" in error
    assert not path.with_suffix(".svg").exists()
