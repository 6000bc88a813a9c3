from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.data._subset import balanced
from zoo.errors import DataError

ITEMS = st.lists(st.tuples(st.text(max_size=6), st.integers(0, 4)), min_size=1, max_size=30, unique_by=lambda x: x[0])


def names(items: list[tuple[str, int]], count: int) -> set[str]:
    return {items[i][0] for i in balanced([k for k, _ in items], [g for _, g in items], count, "test")}


@given(ITEMS, st.data())
def test_order_of_the_items_does_not_matter(items: list[tuple[str, int]], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(items)))
    shuffled = data.draw(st.permutations(items))
    assert names(items, count) == names(shuffled, count)


@given(ITEMS)
def test_subsets_are_nested_and_balanced(items: list[tuple[str, int]]) -> None:
    sizes = {g: sum(1 for _, h in items if h == g) for _, g in items}
    before: set[str] = set()
    for count in range(1, len(items) + 1):
        now = names(items, count)
        assert len(now) == count and before < now
        taken = {g: sum(1 for k, h in items if h == g and k in now) for g in sizes}
        assert all(taken[g] == sizes[g] or taken[g] >= max(taken.values()) - 1 for g in sizes)
        before = now


@given(ITEMS, st.data())
def test_one_more_item_pushes_out_at_most_one(items: list[tuple[str, int]], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(items)))
    more = [*items, ("a key that is longer", data.draw(st.integers(0, 4)))]
    assert len(names(items, count) - names(more, count)) <= 1


def test_within_a_class_the_smallest_hash_wins() -> None:
    keys = [f"cat/{i}.png" for i in range(20)]
    smallest = sorted(keys, key=lambda k: hashlib.sha256(k.encode()).hexdigest())[:3]
    assert [keys[i] for i in balanced(keys, [0] * 20, 3, "test")] == sorted(smallest, key=keys.index)


@pytest.mark.parametrize("count", [0, -1, 4, True, 1.0, "2"])
def test_impossible_counts_are_refused(count: object) -> None:
    with pytest.raises(DataError, match="toy"):
        balanced(["a", "b", "c"], [0, 0, 1], count, "toy")  # type: ignore[arg-type]
