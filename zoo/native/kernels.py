"""The functions of ``kernels.cpp`` on tensors."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from zoo.native.library import compile_kernels

_POINTER, _LONG, _FLOAT, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int
_SIGNATURES: dict[str, list[Any]] = {
    "normed_forward": [*[_POINTER] * 2, *[_LONG] * 2, *[_POINTER] * 4, *[_FLOAT] * 5, _INT, *[_POINTER] * 2, _INT],
    "normed_backward": [*[_POINTER] * 3, *[_LONG] * 2, *[_POINTER] * 4, *[_FLOAT] * 3, _INT, *[_POINTER] * 3, _INT],
    "range_forward": [*[_POINTER] * 2, *[_LONG] * 2, _POINTER, *[_FLOAT] * 2, _INT],
    "range_backward": [*[_POINTER] * 3, *[_LONG] * 2, _POINTER, *[_FLOAT] * 2, _INT, _POINTER, _INT],
    "depthwise_forward": [*[_POINTER] * 5, _INT],
    "depthwise_backward": [*[_POINTER] * 7, _INT],
}
# what the gradient of the scale is made of: rounding and clipping, clipping alone, nothing (and nothing is rounded)
ROUNDING, CLIPPING, FLOAT = range(3)
_TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


class Kernels:
    """Fake quantization ``y = code * step``, ``code = clamp(round(x / step), low, high)``, and its gradients.

    Codes are centred: ``low`` and ``high`` are the smallest and the largest less the zero point. ``inside`` is where
    ``x / step`` lies between them, ends excluded. Sums do not depend on the number of threads, which is PyTorch's.
    Tensors are on the CPU and without gaps; those in float32 or bfloat16 share one type.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        """Take a compiled ``kernels.cpp``."""
        self.functions = {(n, t): library[f"{n}_{suffix}"] for n in _SIGNATURES for t, suffix in _TYPES.items()}
        for (name, _), function in self.functions.items():
            function.argtypes, function.restype = _SIGNATURES[name], None

    def __reduce__(self) -> tuple[Any, ...]:
        """Make a copy, in this process or another, with kernels compiled there."""
        return kernels, ()

    @staticmethod
    def suit(x: Tensor, *others: Tensor) -> bool:
        """Tell whether there are kernels for a tensor of this type, with these parameters."""
        plain = all(t.dtype == torch.float32 and t.is_contiguous() for t in others)
        return plain and x.dtype in _TYPES and x.numel() > 0

    def range_forward(self, x: Tensor, scale: Tensor, low: float, high: float) -> Tensor:
        """Return y for a ``scale`` [1], or [rows] of the first axis."""
        y = torch.empty_like(x)
        rows = scale.numel()
        self._call("range_forward", x, x, y, rows, x.numel() // rows, scale, low, high)
        return y

    def range_backward(
        self, x: Tensor, grad: Tensor, scale: Tensor, low: float, high: float, mode: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``p = [inside] grad``, ``sum grad (code - [inside] x / step)`` [rows], ``sum grad - p`` [rows].

        With CLIPPING, ``code`` takes the place of ``x / step`` inside.
        """
        passed = torch.empty_like(x)
        rows = scale.numel()
        sums = torch.empty(rows, 2)
        self._call("range_backward", x, x, grad, passed, rows, x.numel() // rows, scale, low, high, mode, sums)
        return passed, sums[:, 0], sums[:, 1]

    def normed_forward(
        self, u: Tensor, gamma: Tensor, beta: Tensor, running: tuple[Tensor, Tensor], momentum: float, eps: float,
        step: float, low: float, high: float, mode: int,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Return y of ``x = BatchNorm(u)``, and the batch's mean and inverse deviation [channels].

        ``u`` is ``[N, C]``, or channels_last ``[N, C, H, W]``. The ``running`` mean and variance are updated. With
        FLOAT, ``x / step`` is clamped and not rounded, and the sums of the backward pass are zero.
        """
        y = torch.empty_like(u)
        mean, deviation = torch.empty(2, len(gamma)).unbind()
        self._call(
            "normed_forward", u, u, y, u.numel() // len(gamma), len(gamma), gamma, beta, *running, momentum, eps,
            step, low, high, mode, mean, deviation,
        )  # fmt: skip
        return y, mean, deviation

    def normed_backward(
        self, u: Tensor, grad: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, deviation: Tensor, step: float,
        low: float, high: float, mode: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        """Return the gradients of u, gamma and beta, and the two sums of ``range_backward`` over all of x."""
        grad_u = torch.empty_like(u)
        grad_gamma, grad_beta = torch.empty(2, len(gamma)).unbind()
        sums = torch.empty(2)
        self._call(
            "normed_backward", u, u, grad, grad_u, u.numel() // len(gamma), len(gamma), gamma, beta, mean, deviation,
            step, low, high, mode, grad_gamma, grad_beta, sums,
        )  # fmt: skip
        return grad_u, grad_gamma, grad_beta, sums[0], sums[1]

    def depthwise_forward(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: tuple[int, int]
    ) -> Tensor:
        """Return channels_last ``x`` [N, C, H, W] convolved by ``weight`` [C, 1, K, K], K 3 or 5, plus ``bias`` [C].

        The padding is less than K, height and width with it at least K.
        """
        kernel = weight.shape[2]
        size = [(s + 2 * p - kernel) // stride + 1 for s, p in zip(x.shape[2:], padding, strict=True)]
        y = torch.empty(*x.shape[:2], *size, dtype=x.dtype, memory_format=torch.channels_last)
        self._call("depthwise_forward", x, x, weight, bias, y, _longs(*x.shape, kernel, stride, *padding, *size))
        return y

    def depthwise_backward(
        self, x: Tensor, grad: Tensor, weight: Tensor, stride: int, padding: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of x, weight and bias; ``grad`` is channels_last as x."""
        grad_x, grad_weight, grad_bias = torch.empty_like(x), torch.empty_like(weight), torch.empty(len(weight))
        shape = _longs(*x.shape, weight.shape[2], stride, *padding, *grad.shape[2:])
        self._call("depthwise_backward", x, x, grad, weight, grad_x, grad_weight, grad_bias, shape)
        return grad_x, grad_weight, grad_bias

    def _call(self, name: str, typed: Tensor, *arguments: Any) -> None:
        function = self.functions[name, typed.dtype]
        function(*(a.data_ptr() if isinstance(a, Tensor) else a for a in arguments), torch.get_num_threads())


def _longs(*values: int) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(values))(*values)


@lru_cache(maxsize=1)
def kernels() -> Kernels:
    """Return the compiled kernels, the same in all of a process; raises RecipeError as ``compile_kernels``."""
    return Kernels(compile_kernels())
