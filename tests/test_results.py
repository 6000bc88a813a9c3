"""Records: what is written is read back, what is damaged is refused, and the interval is the right one."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.records import make_record
from zoo.errors import ArtifactError
from zoo.paths import results_dir
from zoo.results import paired_interval, read_record, read_records, write_record


def test_record_round_trip(tmp_path: Path) -> None:
    record = make_record(notes=("logits keep 16 bits",))
    path = write_record(record, tmp_path)
    assert path == tmp_path / "toy_w4a8" / "shapes-tflite.json"
    assert read_record(path) == record


def test_same_record_same_bytes_and_sorted_keys(tmp_path: Path) -> None:
    first = write_record(make_record(), tmp_path).read_bytes()
    swapped = make_record(seconds={"adaround": 20.25, "calibrate": 1.5})
    assert write_record(swapped, tmp_path).read_bytes() == first
    keys = list(json.loads(first))
    assert keys == sorted(keys) and first.endswith(b"}\n")


def test_write_leaves_no_temporary_file(tmp_path: Path) -> None:
    write_record(make_record(), tmp_path)
    assert [p.name for p in (tmp_path / "toy_w4a8").iterdir()] == ["shapes-tflite.json"]


def test_failed_write_keeps_the_old_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_record(make_record(), tmp_path)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ArtifactError, match=r"cannot be written \(No space left on device\)"):
        write_record(make_record(budget="full"), tmp_path)
    assert read_record(path).budget == "fast"
    assert len(list(path.parent.iterdir())) == 1


def test_no_folder_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "toy_w4a8").write_text("a file where the folder should be")
    with pytest.raises(ArtifactError, match="cannot be written"):
        write_record(make_record(), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "format_version 2 is unknown"),
        ({"format_version": None}, "format_version None is unknown"),
        ({"format_version": True}, "format_version True is unknown"),
        ({"top_1": 3.0}, "field 'top_1' is unknown; did you mean 'top1'"),
        ({"seed": "7"}, "seed: expected int"),
        ({"top1": 101.0}, "top1 must be a percentage"),
        ({"drop": 9.0}, "outside its own interval"),
        ({"float_top1": 95.0}, "is not float_top1 - top1"),
        ({"weights_bytes": 0}, "must be positive"),
        ({"drop_interval": [0.0]}, "expected 2 values"),
        ({"data": {"name": "shapes"}}, "is missing"),
        ({"recipe": "../toy"}, "cannot be part of a file name"),
        ({"recipe": "other"}, "holds the record of other/"),
    ],
)
def test_damaged_record_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = write_record(make_record(), tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ArtifactError) as error:
        read_record(path)
    assert message in str(error.value) and str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_field_is_refused(tmp_path: Path) -> None:
    path = write_record(make_record(), tmp_path)
    fields = json.loads(path.read_text())
    del fields["agreement"]
    path.write_text(json.dumps(fields))
    with pytest.raises(ArtifactError, match="'agreement' is missing"):
        read_record(path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format_version": NaN}', "\x00"])
def test_garbage_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x-y.json"
    path.write_text(text)
    with pytest.raises(ArtifactError):
        read_record(path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_record(tmp_path / "x-y.json")


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not finite"):
        write_record(make_record(seconds={"calibrate": float("nan")}), tmp_path)


def test_read_records_skips_the_checkpoint_and_sorts(tmp_path: Path) -> None:
    for recipe in ("b_w8a8", "a_w8a8"):
        write_record(make_record(recipe=recipe), tmp_path)
    (tmp_path / "a_w8a8" / "config.json").write_text("{}")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "toy_float-seed1.json").write_text("{}")
    assert [r.recipe for r in read_records(tmp_path)] == ["a_w8a8", "b_w8a8"]
    assert read_records(tmp_path / "nothing") == []


def vectors(both: int, only_float: int, only_quant: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    a = [True] * both + [True] * only_float + [False] * only_quant + [False] * neither
    b = [True] * both + [False] * only_float + [True] * only_quant + [False] * neither
    return np.array(a), np.array(b)


def test_paired_interval_by_hand() -> None:
    # N = 98, b = 6, c = 2: n' = 100, centre 4 / 100, variance (9 - 16 / 100) / 100**2.
    drop, low, high = paired_interval(*vectors(80, 6, 2, 10))
    half = 1.96 * np.sqrt(9 - 0.16) / 100
    assert drop == pytest.approx(100 * 4 / 98)
    assert (low, high) == (pytest.approx(100 * (0.04 - half), abs=1e-3), pytest.approx(100 * (0.04 + half), abs=1e-3))


def test_equal_networks_still_have_a_width() -> None:
    drop, low, high = paired_interval(*vectors(70, 0, 0, 30))
    assert drop == 0.0 and low == -high and 1.0 < high < 3.0


def test_extremes_stay_inside_the_scale() -> None:
    drop, low, high = paired_interval(*vectors(0, 1, 0, 0))
    assert drop == high == 100.0 and low < 100.0


@given(st.tuples(*[st.integers(0, 60)] * 4).filter(lambda t: sum(t) > 0))
def test_swapping_the_networks_mirrors_the_interval(counts: tuple[int, int, int, int]) -> None:
    a, b = vectors(*counts)
    drop, low, high = paired_interval(a, b)
    assert low <= drop <= high
    assert paired_interval(b, a) == pytest.approx((-drop, -high, -low))


def test_coverage_is_95_percent() -> None:
    rng = np.random.default_rng(20261)
    n, lose, gain, trials = 300, 0.06, 0.02, 1500
    hits = 0
    for _ in range(trials):
        draw = rng.random(n)
        a, b = draw >= gain, (draw < gain) | (draw >= gain + lose)
        _, low, high = paired_interval(a, b)
        hits += low <= 100 * (lose - gain) <= high
    assert 0.93 < hits / trials < 0.975


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (np.zeros(3, bool), np.zeros(4, bool)),
        (np.zeros(0, bool), np.zeros(0, bool)),
        (np.zeros((2, 2), bool), np.zeros((2, 2), bool)),
        (np.zeros(3), np.zeros(3, bool)),
    ],
)
def test_unequal_or_empty_vectors_are_refused(a: np.ndarray, b: np.ndarray) -> None:
    with pytest.raises(ValueError, match="need"):
        paired_interval(a, b)


def test_shipped_checkpoints_are_the_recorded_ones() -> None:
    """Every shipped record reads, and each checkpoint beside it is the file whose accuracy was measured."""
    known: dict[str, set[str]] = {}
    for record in read_records(results_dir()):
        known.setdefault(record.recipe, set()).add(record.artifact_sha256)
    for path in results_dir().rglob("model.safetensors"):
        recipe = path.relative_to(results_dir()).parts[0]
        assert hashlib.sha256(path.read_bytes()).hexdigest() in known.get(recipe, set()), f"{recipe} has no record"


def test_shipped_records_are_of_todays_recipes() -> None:
    """A recipe that changed after its record was made needs a new run."""
    from zoo.compose import compose
    from zoo.recipe import content_hash, named_weights

    for record in read_records(results_dir()):
        fields = compose([f"recipe={record.recipe}", f"seed={record.seed}"])
        assert record.recipe_sha256 == content_hash(fields), f"{record.file} is stale"
        assert named_weights(fields["model"], record.parent.sha256), f"{record.file}: other float weights today"
        assert named_weights(fields.get("teacher"), record.teacher_sha256), f"{record.file}: another teacher today"
