"""Dense packing of low-bit codes, the compressed-tensors scheme (see docs/format.md)."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.errors import ArtifactError

PACKED = (2, 3, 4)
_AT_ONCE = 2**16  # words: unpacked they take up to a thousand times their bytes


def words_per_row(columns: int, bits: int) -> int:
    """Return how many 32-bit words a row of ``columns`` codes takes (3 bit: 32 codes in three words)."""
    return -(-columns // 32) * 3 if bits == 3 else -(-columns // (32 // bits))


def pack(codes: Tensor, bits: int) -> Tensor:
    """Return int32 ``[rows, words]`` from unsigned codes ``[rows, columns]`` in ``0 .. 2**bits - 1``.

    The lowest index lies in the least significant bits; each row is padded with zeros to a whole word.
    """
    rows, columns = codes.shape
    words = words_per_row(columns, bits)
    padded = torch.zeros(rows, words * 32 // bits, dtype=torch.int64)
    padded[:, :columns] = codes.to(torch.int64)
    if bits == 3:
        digits = (padded[:, :, None] >> torch.arange(3)) & 1
        digits = digits.reshape(rows, words, 32)
        packed = (digits << torch.arange(32)).sum(2)
    else:
        per = 32 // bits
        packed = (padded.reshape(rows, words, per) << (bits * torch.arange(per))).sum(2)
    return torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)


def unpack(words: Tensor, bits: int, columns: int) -> Tensor:
    """Return the unsigned codes ``[rows, columns]`` (uint8); a word tensor of the wrong width raises ArtifactError."""
    rows = words.shape[0]
    if words.dim() != 2 or words.shape[1] != words_per_row(columns, bits):
        raise ArtifactError(f"{list(words.shape)} words cannot hold {columns} codes of {bits} bits a row")
    if rows > 1 and words.numel() > _AT_ONCE:
        parts = torch.split(words, max(1, _AT_ONCE // max(1, words.shape[1])))
        return torch.cat([unpack(part, bits, columns) for part in parts])
    wide = words.to(torch.int64) & 0xFFFFFFFF
    if bits == 3:
        digits = ((wide[:, :, None] >> torch.arange(32)) & 1).reshape(rows, -1, 3)
        codes = (digits << torch.arange(3)).sum(2)
    else:
        codes = ((wide[:, :, None] >> (bits * torch.arange(32 // bits))) & (2**bits - 1)).reshape(rows, -1)
    return codes[:, :columns].to(torch.uint8)
