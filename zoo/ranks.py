"""Several processes that train one network, as ``torchrun`` starts them; a process alone is rank 0 of 1.

Every process runs the recipe's steps on the same numbers; in ``train`` each takes its share of every batch. Only rank 0
writes files and goes on to the evaluation.
"""

from __future__ import annotations

import os
import warnings
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from zoo.errors import RecipeError

_PATIENCE = timedelta(minutes=30)


def start() -> None:
    """Join the group that ``torchrun`` announces in the environment; nothing to do for a process alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not distributed.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=_PATIENCE)


def leave() -> None:
    """Leave the group after the last step; every rank but 0 has then done its part and ends."""
    if distributed.is_initialized():
        leads = leader()
        distributed.destroy_process_group()
        if not leads:
            raise SystemExit(0)


def count() -> int:
    """Return the number of processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def leader() -> bool:
    """Tell whether this process is the one that writes files."""
    return not distributed.is_initialized() or distributed.get_rank() == 0


def share(batch: int) -> slice:
    """Return this process's rows of a batch of so many images; RecipeError where they cannot be shared evenly."""
    if batch % count():
        raise RecipeError(f"train.batch: {batch} images cannot be shared by {count()} processes; choose a multiple")
    if count() == 1:
        return slice(None)
    own = batch // count()
    return slice(distributed.get_rank() * own, (distributed.get_rank() + 1) * own)


def first(text: str) -> str:
    """Return what rank 0 holds of a text in ASCII, which has the same length everywhere."""
    if count() == 1:
        return text
    codes = torch.tensor(list(text.encode("ascii")), dtype=torch.uint8, device=_device())
    distributed.broadcast(codes, src=0)
    return bytes(codes.tolist()).decode("ascii")


def require_same(value: int, message: str) -> None:
    """Raise RecipeError with the message, in every process, unless all hold the same number."""
    if count() == 1:
        return
    ends = torch.tensor([value, -value], device=_device())
    distributed.all_reduce(ends, distributed.ReduceOp.MAX)
    high, low = int(ends[0]), -int(ends[1])
    if low != high:
        raise RecipeError(f"{message} (from {low} to {high})")


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@torch.no_grad()
def mean(values: Tensor) -> Tensor:
    """Return the mean of a tensor over the processes."""
    if count() == 1:
        return values
    total = values.clone()
    distributed.all_reduce(total)
    return total / count()


def parallel(net: Any) -> Any:
    """Return a forward function whose gradients are averaged over the processes; the network itself if alone.

    The BatchNorms of ``net`` then see the whole batch, until ``single`` is called.
    """
    if count() == 1:
        return net
    for name, module in net.named_modules():
        if type(module) in _SHARED:
            if not module.affine or not module.track_running_stats or module.momentum is None:
                raise RecipeError(f"train: {name} is a BatchNorm without factors, running statistics or momentum, "
                                  "which several processes cannot share; train in one")  # fmt: skip
            module.__class__ = _SHARED[type(module)]
    with warnings.catch_warnings():
        # its successor is younger than the oldest torch that we run with
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
        return DistributedDataParallel(net, broadcast_buffers=False)


def single(net: nn.Module) -> None:
    """Give a network its plain BatchNorms back."""
    plain = {shared: kind for kind, shared in _SHARED.items()}
    for module in net.modules():
        if type(module) in plain:
            module.__class__ = plain[type(module)]


class _Sum(torch.autograd.Function):
    """The sum over the processes, whose gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.contiguous().clone()
        distributed.all_reduce(total)
        return total


class _Shared(nn.modules.batchnorm._BatchNorm):
    """BatchNorm with the statistics of all processes' images, in two passes; torch's own does not run on the CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised tensor, in the type of ``x``; running statistics as in a process alone."""
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        assert self.momentum is not None
        dims = [d for d in range(x.dim()) if d != 1]
        shape = [-1 if d == 1 else 1 for d in range(x.dim())]
        total = x.numel() // x.shape[1] * count()
        average: Tensor = _Sum.apply(x.float().sum(dims)) / total
        centred = x.float() - average.reshape(shape)
        variance: Tensor = _Sum.apply(centred.square().sum(dims)) / total
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(average, self.momentum)
            self.running_var.lerp_(variance * (total / (total - 1)), self.momentum)
        factor = torch.rsqrt(variance + self.eps) * self.weight
        return torch.addcmul(self.bias.reshape(shape), centred, factor.reshape(shape)).to(x.dtype)


class _Shared1d(_Shared, nn.BatchNorm1d):
    pass


class _Shared2d(_Shared, nn.BatchNorm2d):
    pass


_SHARED: dict[type[nn.Module], type[nn.Module]] = {nn.BatchNorm1d: _Shared1d, nn.BatchNorm2d: _Shared2d}
