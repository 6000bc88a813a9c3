"""The table of networks by precisions: every record has its place, seeds and kinds of quantization apart."""

from __future__ import annotations

from typing import Any

from evaluate.headline import headline
from evaluate.rows import rows
from tests.records import make_record
from zoo.results import Record

TRAINED = ("quantize", '{"train": {"epochs": 3}}', "integerize")


def scored(top1: float, float_top1: float = 90.0, **changes: Any) -> Record:
    drop = float_top1 - top1
    interval = (drop - 1.0, drop + 1.0)
    return make_record(top1=top1, float_top1=float_top1, drop=drop, drop_interval=interval, **changes)


def cells(records: list[Record], absent: frozenset[str] = frozenset()) -> list[list[str]]:
    lines = headline(rows(records), absent).splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len({len(row) for row in table}) == 1
    return table


def test_formats_are_columns_with_most_bits_first() -> None:
    records = [make_record(recipe=f"toy_{b}".lower(), bits=b) for b in ("W2A2", "W4A4", "W8A8", "W4A8")]
    head, _, line = cells(records)
    assert head == ["network", "quantization", "float", "W8A8", "W4A8", "W4A4", "W2A2"]
    assert line[:3] == ["`toy`", "converted", "90.00"]
    assert [cell.split("/")[1] for cell in line[3:]] == ["toy_w8a8", "toy_w4a8", "toy_w4a4", "toy_w2a2"]


def test_seeds_are_one_cell_with_their_mean_and_its_distance_to_the_float_network() -> None:
    records = [scored(top1, seed=seed) for seed, top1 in enumerate((88.0, 88.5, 89.6))]
    (*_, line) = cells(records)
    assert line[3:] == ["[**88.70** ± 0.82 (3)](results/toy_w4a8/checkpoint/README.md), -1.30"]
    for top1, said in ((90.25, "+0.25"), (89.999, "+0.00")):
        (*_, line) = cells([scored(top1)])
        assert line[3:] == [f"[**{top1:.2f}**](results/toy_w4a8/checkpoint/README.md), {said}"]


def test_trained_and_converted_networks_have_lines_of_their_own() -> None:
    records = [
        make_record(),
        make_record(recipe="toy_qat_w4a4", bits="W4A4", steps=TRAINED),
        make_record(recipe="a_w4a4", bits="W4A4", model="a"),
    ]
    _, _, *lines = cells(records)
    assert [line[:2] for line in lines] == [["`a`", "converted"], ["`toy`", "converted"], ["`toy`", "trained"]]
    assert [[bool(cell) for cell in line[3:]] for line in lines] == [[False, True], [True, False], [False, True]]


def test_two_recipes_of_a_cell_are_told_by_name() -> None:
    (*_, line) = cells([make_record(), scored(88.75, recipe="toy_w4a8_long")])
    first, second = line[3].split("<br>")
    assert first.startswith("`toy_w4a8` [**88.50**]") and second.startswith("`toy_w4a8_long` [**88.75**]")


def test_a_card_that_git_leaves_out_is_not_linked() -> None:
    (*_, line) = cells([make_record()], frozenset({"toy_w4a8"}))
    assert line[3] == "**88.50**, -1.50"


def test_float_parents_that_differ_are_all_shown() -> None:
    (*_, line) = cells([make_record(), scored(88.5, 91.0, recipe="other_w8a8", bits="W8A8")])
    assert line[2] == "91.00, 90.00"
