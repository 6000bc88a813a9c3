"""Tables and plot: generated from records only, the same bytes each time, stale ones found."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

import zoo
from evaluate.front import front, fronts
from evaluate.rows import order
from evaluate.table import BEGIN, END, absent_checkpoints, main, put_between, readme_tables, render, table_csv
from tests.records import make_record
from zoo.errors import ArtifactError
from zoo.results import Calibration, EvalData, Parent, Record, read_records, write_record

ROOT = Path(__file__).resolve().parents[2]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "results").mkdir()
    (tmp_path / "README.md").write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    return tmp_path


def many() -> list[Record]:
    other = EvalData("imagenet-val1000", 1000, "full", "9" * 64)
    return [
        make_record(recipe="toy_w4a4", bits="W4A4"),
        make_record(recipe="toy_w8a8", bits="W8A8", weights_bytes=24_000),
        make_record(),
        make_record(recipe="big_w8a8", bits="W8A8", model="big", data=other, weights_bytes=2_600_000),
    ]


def mark_text(mark: ET.Element) -> str:
    """Return which point a mark stands for; empty for one of the legend."""
    title = mark.find(f"{SVG}title")
    return "" if title is None or title.text is None else title.text.split(", ")[1].split(":")[0]


def marks(root: ET.Element) -> dict[str, tuple[float, float]]:
    """Return the middle of each point's mark."""
    where = {mark_text(c): (float(c.get("cx", 0)), float(c.get("cy", 0))) for c in root.iter(f"{SVG}circle")}
    half = 4.0
    where |= {mark_text(r): (float(r.get("x", 0)) + half, float(r.get("y", 0)) + half) for r in root.iter(f"{SVG}rect")}
    return {name: spot for name, spot in where.items() if name}


def test_written_tables_pass_the_check(checkout: Path) -> None:
    write_record(make_record(), checkout / "results")
    arguments = ["--root", str(checkout)]
    assert main([*arguments, "--check"]) == 1
    assert main(arguments) == 0
    assert main([*arguments, "--check"]) == 0
    readme = (checkout / "README.md").read_text()
    assert readme.startswith("before\n") and readme.endswith("\nafter\n") and "old" not in readme


def test_every_training_has_a_curve_that_goes_stale(checkout: Path) -> None:
    header = "position,epoch,step,lr,loss,accuracy,holdout,images_per_second\n"
    for name in ("toy_w4a8/shapes-tflite.csv", "weights/toy_float.csv"):
        (checkout / "results" / name).parent.mkdir()
        (checkout / "results" / name).write_text(f"{header}2,1,9,0.1,1.5,50,,7\n2,2,18,0.1,1.25,60,,7\n")
    arguments = ["--root", str(checkout)]
    assert main(arguments) == 0 and main([*arguments, "--check"]) == 0
    drawn = (checkout / "results" / "toy_w4a8" / "shapes-tflite.svg").read_text()
    assert "toy_w4a8, shapes-tflite" in drawn and (checkout / "results" / "weights" / "toy_float.svg").is_file()
    (checkout / "results" / "toy_w4a8" / "shapes-tflite.csv").write_text(f"{header}2,1,9,0.1,1.5,51,,7\n")
    assert main([*arguments, "--check"]) == 1


@pytest.mark.parametrize("name", ["README.md", "results/table.csv", "results/accuracy_vs_size/shapes.svg"])
def test_each_stale_file_fails_the_check(checkout: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_record(make_record(), checkout / "results")
    main(["--root", str(checkout)])
    path = checkout / name
    path.write_text(path.read_text().replace("88.5", "89.5"))
    assert main(["--root", str(checkout), "--check"]) == 1
    assert f"{name}: is stale" in capsys.readouterr().err


def test_check_writes_nothing(checkout: Path) -> None:
    main(["--root", str(checkout), "--check"])
    assert "old" in (checkout / "README.md").read_text() and list((checkout / "results").iterdir()) == []


def test_without_records(checkout: Path) -> None:
    assert main(["--root", str(checkout)]) == 0
    assert "No recipe has been recorded yet" in (checkout / "README.md").read_text()
    assert len((checkout / "results" / "table.csv").read_text().splitlines()) == 1
    assert not (checkout / "results" / "accuracy_vs_size").exists()


def test_broken_record_is_one_line(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_record(make_record(), checkout / "results")
    path.write_text("{")
    assert main(["--root", str(checkout)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and str(path) in error


@pytest.mark.parametrize("text", ["", BEGIN, f"{END}{BEGIN}", f"{BEGIN}{BEGIN}{END}"])
def test_missing_markers_are_refused(text: str) -> None:
    with pytest.raises(ArtifactError, match="once each"):
        put_between(text, "x\n", "README.md")


def test_csv_holds_every_record_as_numbers() -> None:
    rows = list(csv.DictReader(io.StringIO(table_csv(many()))))
    assert [r["recipe"] for r in rows] == ["big_w8a8", "toy_w8a8", "toy_w4a8", "toy_w4a4"]
    row = next(r for r in rows if r["recipe"] == "toy_w4a8")
    unknown = ("torchvision", "timm", "zoo", "macs", "activation_bytes")
    assert None not in row and "" not in {row[k] for k in row if k not in unknown} and row["macs"] == ""
    expected = {
        "top1": 88.5, "drop": 1.5, "drop_low": -0.25, "drop_high": 3.25, "weights_bytes": 12345, "seconds": 21.8,
        "compression": 8.0, "n": 200, "seed": 0, "dirty": 0,
    }  # fmt: skip
    assert {k: float(row[k]) for k in expected} == pytest.approx(expected, abs=0.05)
    assert row["artifact_sha256"] == "d" * 64


def test_readme_has_a_table_for_each_data_set() -> None:
    text = readme_tables(many())
    assert text.count("|---|---|---:") == 2
    assert "**imagenet-val1000**, 1,000 images" in text and "**shapes**, 200 images" in text
    row = next(line for line in text.splitlines() if line.startswith("| [`toy_w4a8`]"))
    assert row.startswith("| [`toy_w4a8`](results/toy_w4a8/checkpoint/README.md) | W4A8 |")
    for part in ("90.00", "**88.50**", "1.50 [-0.25, 3.25]", "12.3 kB", "8.0x smaller", "22 s", "dddddddddddd"):
        assert part in row
    details = [part.partition("</details>")[0] for part in text.split("<details>")[1:]]
    assert len(details) == 2
    assert {line.count("|") for part in details for line in part.splitlines() if line.startswith("|")} == {15}
    costly = readme_tables([make_record(macs=12_501_632, activation_bytes=49_152)])
    assert "| 8.0x smaller | 12.5 M | 49.2 kB | tflite |" in costly
    assert "| 8.0x smaller |  |  | tflite |" in row


def test_a_checkpoint_that_git_leaves_out_says_so(checkout: Path) -> None:
    for record in (make_record(), make_record(recipe="large")):
        write_record(record, checkout / "results")
    (checkout / ".gitignore").write_text("*.pyc\n# beyond 4 MB\nresults/large/checkpoint/\nresults/*/seed*/\n")
    assert main(["--root", str(checkout)]) == 0
    lines = (checkout / "README.md").read_text().splitlines()
    rows = {line.split("`")[1]: line for line in lines if line.count("`") > 1}
    assert "12.3 kB, not in git |" in rows["large"] and "12.3 kB |" in rows["toy_w4a8"]
    assert rows["large"].startswith("| `large` |")  # no card lies in git


def test_a_subset_is_labelled() -> None:
    record = make_record(data=EvalData("shapes", 50, "first 50", "b" * 64))
    assert "**shapes (first 50)**, 50 images" in readme_tables([record])


def test_a_partial_record_parts_neither_table_nor_picture() -> None:
    part = EvalData("shapes", 50, "first 50", "c" * 64)
    records = [make_record(recipe="a_w8a8", bits="W8A8"), make_record(recipe="b_w6a8", bits="W6A8", data=part),
               make_record(recipe="c_w4a8")]  # fmt: skip
    text = readme_tables(records)
    assert text.count("**shapes**, 200 images") == 1 and text.count("**shapes (first 50)**, 50 images") == 1
    drawn = fronts(sorted(records, key=order))
    found = {path.stem: set(marks(ET.fromstring(text))) - {"float"} for path, text in drawn.items()}
    assert found == {"shapes": {"W8A8", "W4A8"}, "shapes-first-50": {"W6A8"}}


def test_order_of_records_does_not_matter() -> None:
    assert table_csv(many()) == table_csv(many()[::-1])
    assert readme_tables(many()) == readme_tables(many()[::-1])


def test_plot_shows_every_point_on_a_log_axis() -> None:
    same = {"float_bytes": 1_000_000, "float_top1": 90.0}
    records = [
        make_record(recipe=f"toy_w{b}a8", bits=f"W{b}A8", weights_bytes=n, top1=t, drop=90.0 - t,
                    drop_interval=(90.0 - t - 1, 90.0 - t + 1), **same)
        for b, n, t in ((8, 100_000, 89.0), (4, 10_000, 85.0))
    ]  # fmt: skip
    root = ET.fromstring(front("shapes", records))
    where = marks(root)
    assert set(where) == {"W8A8", "W4A8", "float"}
    # A factor of ten is the same distance everywhere; higher accuracy is further up, in proportion.
    assert where["float"][0] - where["W8A8"][0] == pytest.approx(where["W8A8"][0] - where["W4A8"][0], abs=0.2)
    assert (where["W4A8"][1] - where["float"][1]) / (where["W8A8"][1] - where["float"][1]) == pytest.approx(5, rel=0.02)
    texts = [t.text for t in root.iter(f"{SVG}text")]
    assert {"W8A8", "W4A8", "float", "toy", "100 kB", "top-1 (%)"} <= set(texts)


def test_plot_labels_do_not_collide() -> None:
    close = [make_record(recipe=f"toy_w{b}a8", bits=f"W{b}A8", weights_bytes=12_000 + b) for b in (2, 3, 4, 8)]
    root = ET.fromstring(front("shapes", close))
    labels = [t for t in root.iter(f"{SVG}text") if t.text in {"W2A8", "W3A8", "W4A8", "W8A8"}]
    spots = [(float(t.get("x")), float(t.get("y"))) for t in labels]
    assert len(spots) == 4
    for i, (x, y) in enumerate(spots):
        assert all(abs(x - u) > 24 or abs(y - v) > 10 for u, v in spots[:i])


def test_names_are_escaped_in_the_plot() -> None:
    ET.fromstring(front("x<y&z", [make_record(model="a<b&c")]))


def test_each_data_set_has_a_picture_beside_its_table() -> None:
    drawn = fronts(sorted(many(), key=lambda r: r.data.name))
    text = readme_tables(many())
    assert len(drawn) == 2 and all(f"](results/{path.as_posix()})" in text for path in drawn)
    assert not any(
        len(path.parts) > 2 or " " in path.name for path in fronts([make_record(data=EvalData("a", 5, "5 / 9", ""))])
    )


def test_the_front_leaves_out_what_a_smaller_file_beats() -> None:
    sizes = {"W2A2": (1_000, 80.0), "W4A4": (2_000, 88.0), "W3A3": (2_000, 87.0), "W8A8": (4_000, 90.5)}
    records = [
        make_record(bits=b, weights_bytes=n, top1=t, float_bytes=9_000, drop=90.0 - t, drop_interval=(-20.0, 20.0))
        for b, (n, t) in sizes.items()
    ]
    root = ET.fromstring(front("shapes", records))
    (line,) = root.iter(f"{SVG}polyline")
    where = marks(root)
    joined = [tuple(float(v) for v in pair.split(",")) for pair in str(line.get("points")).split()]
    assert joined == [where[b] for b in ("W2A2", "W4A4", "W8A8")] and {"float", "W3A3"} < set(where)


def test_training_shows_in_the_mark() -> None:
    records = [make_record(bits="W8A8"), make_record(steps=("quantize", '{"train": {"epochs": 3}}', "integerize"))]
    assert [r.trained for r in records] == [False, True]
    root = ET.fromstring(front("shapes", records))
    shapes = {name: [mark_text(m) for m in root.iter(f"{SVG}{name}") if mark_text(m)] for name in ("rect", "circle")}
    assert shapes["rect"] == ["W8A8"] and sorted(shapes["circle"]) == ["W4A8", "float"]


def test_a_record_of_other_weights_than_its_checkpoints_is_found(checkout: Path) -> None:
    record = make_record()
    write_record(record, checkout / "results")
    manifest = checkout / "results" / record.checkpoint / "manifest.json"
    manifest.parent.mkdir(parents=True)

    def write(sha256: str) -> None:
        manifest.write_text(json.dumps({"format_version": 1, "files": {"model.safetensors": {"sha256": sha256}}}))

    write(record.artifact_sha256)
    assert render(checkout)
    write("9" * 64)
    with pytest.raises(ArtifactError, match="the checkpoint beside it is another; run the recipe again"):
        render(checkout)


def test_every_recorded_checkpoint_is_in_git_or_said_to_be_left_out() -> None:
    absent, recorded = absent_checkpoints(ROOT), {r.recipe for r in read_records(ROOT / "results")}
    assert absent and absent <= recorded
    assert recorded - absent <= set(zoo.list_checkpoints())


def test_the_checkout_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "evaluate.table", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": EvalData("shapes", 20, "20 of 200", "1" * 64)}, "test images"),
        ({"steps": ("quantize", "calibrate", "integerize")}, "steps"),
        ({"budget": "full"}, "budget"),
        ({"model": "another"}, "model"),
        ({"parent": Parent("org/toy-float", "2" * 64)}, "float weights"),
        ({"calibration": Calibration("shapes-train", 64, "3" * 64)}, "calibration images"),
        ({"weights_bytes": 12_346}, "bytes of weights"),
        ({"activation_bytes": 8_192}, "bytes of activations"),
    ],
)
def test_another_experiment_is_not_merged_as_a_seed(change: dict[str, object], said: str) -> None:
    first = make_record(activation_bytes=4_096)
    # what an old record does not tell differs from nothing
    assert "(2)" in readme_tables([first, make_record(seed=1)])
    with pytest.raises(ArtifactError, match=f"toy_w4a8 on shapes: .* differ in {said}"):
        readme_tables([first, make_record(seed=1, **change)])
