from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.artifact import packing
from zoo.artifact.packing import pack, unpack, words_per_row
from zoo.errors import ArtifactError


def test_four_bits_by_hand() -> None:
    # codes 1..8, lowest index in the lowest bits: 0x87654321; the ninth starts a new word
    words = pack(torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8, 9]]), 4)
    assert [w & 0xFFFFFFFF for w in words[0].tolist()] == [0x87654321, 0x9]


def test_all_four_bit_codes_by_hand() -> None:
    # -8 .. 7 with an offset of 8 are 0 .. 15; in memory each byte holds the lower index in its low half
    words = pack(torch.arange(-8, 8)[None] + 8, 4)
    assert [w & 0xFFFFFFFF for w in words[0].tolist()] == [0x76543210, 0xFEDCBA98]
    assert words.numpy().astype("<i4").tobytes() == bytes.fromhex("1032547698badcfe")


def test_rows_start_at_whole_words() -> None:
    assert pack(torch.tensor([[15], [1]]), 4).tolist() == [[15], [1]]
    assert [words_per_row(n, 4) for n in (1, 8, 9, 16, 17)] == [1, 1, 2, 2, 3]
    assert [words_per_row(n, 2) for n in (1, 16, 17)] == [1, 1, 2]
    assert [words_per_row(n, 3) for n in (1, 32, 33)] == [3, 3, 6]


def test_two_bits_by_hand() -> None:
    # 3, 2, 1, 0 is 0b00011011 from the lowest bits up
    words = pack(torch.tensor([[3, 2, 1, 0] * 4, [1] * 16]), 2)
    assert [w & 0xFFFFFFFF for w in words.flatten().tolist()] == [0x1B1B1B1B, 0x55555555]


def test_three_bits_by_hand() -> None:
    # 32 codes of 7 fill 96 bits; a lone 5 = 0b101 followed by 1 = 0b001 gives 0b001101
    full = pack(torch.full((1, 32), 7), 3)
    assert [w & 0xFFFFFFFF for w in full[0].tolist()] == [0xFFFFFFFF] * 3
    assert pack(torch.tensor([[5, 1]]), 3).tolist() == [[0b001101, 0, 0]]
    # code 10 lies in bits 30..32, across two words
    codes = torch.zeros(1, 32, dtype=torch.int64)
    codes[0, 10] = 7
    assert [w & 0xFFFFFFFF for w in pack(codes, 3)[0].tolist()] == [0xC0000000, 1, 0]


@given(bits=st.sampled_from([2, 3, 4]), rows=st.integers(1, 4), columns=st.integers(1, 100), seed=st.integers(0, 999))
@settings(deadline=None)
def test_round_trip(bits: int, rows: int, columns: int, seed: int) -> None:
    torch.manual_seed(seed)
    codes = torch.randint(0, 2**bits, (rows, columns))
    words = pack(codes, bits)
    assert words.dtype == torch.int32 and words.shape == (rows, words_per_row(columns, bits))
    assert torch.equal(unpack(words, bits, columns).long(), codes)


def test_wrong_width_is_refused() -> None:
    with pytest.raises(ArtifactError, match="cannot hold 17 codes"):
        unpack(torch.zeros(1, 2, dtype=torch.int32), 4, 17)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_large_layers_are_unpacked_in_parts(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = torch.randint(0, 2**bits, (37, 100), dtype=torch.uint8, generator=torch.Generator().manual_seed(bits))
    words = packing.pack(codes, bits)
    monkeypatch.setattr(packing, "_AT_ONCE", 5 * words.shape[1])
    parts: list[int] = []
    whole = packing.unpack

    def seen(words: torch.Tensor, bits: int, columns: int) -> torch.Tensor:
        parts.append(len(words))
        return whole(words, bits, columns)

    monkeypatch.setattr(packing, "unpack", seen)
    assert torch.equal(packing.unpack(words, bits, 100), codes)
    assert parts == [37, 5, 5, 5, 5, 5, 5, 5, 2]
