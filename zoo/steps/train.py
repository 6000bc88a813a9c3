"""Train the float network, or the quantized one with its ranges, on labelled images."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import fx, nn

from zoo import __version__, ranks
from zoo.context import Context
from zoo.errors import GraphError, RecipeError
from zoo.graph.fold import clone, fold_batchnorm
from zoo.native.kernels import kernels
from zoo.quant.attach import attach, learner, settle
from zoo.quant.layers import QNode
from zoo.resolve import names
from zoo.steps._walk import require_ranges, require_zero_level
from zoo.train import optimizer as optimizers
from zoo.train import standardize
from zoo.train.checkpoint import Snapshots, identity_of, wiring
from zoo.train.dampen import Dampen
from zoo.train.data import Data
from zoo.train.ema import Average
from zoo.train.freeze import Freeze, Frozen
from zoo.train.fuse import fuse, lend, restore
from zoo.train.layers import LOW, low_bit
from zoo.train.log import Log, tensorboard
from zoo.train.loop import Loop
from zoo.train.objective import Objective
from zoo.train.oscillate import Oscillations
from zoo.train.schedule import SCHEDULES
from zoo.train.sparsify import Sparsify
from zoo.weights import tensors_sha256

_COMPILERS = ("g++", "clang++", "cl")


@dataclass(frozen=True)
class Train:
    """Minimise the cross-entropy on the training split, and the distance to a teacher's logits.

    ``lr`` is the peak for a batch of 128 and scales with ``batch``; weight decay spares biases, BatchNorm and ranges
    (but PACT's, which the publication decays).
    ``momentum`` is AdamW's first beta too. ``warm`` is the share of all steps with a linear warm-up. ``augment`` crops
    at random and flips: each image by chance, or in every other epoch (``flip: alternate``; Jordan 2024, "94% on
    CIFAR-10 in 3.29 Seconds on a Single GPU", section 3.6). ``cutout`` is the side of a hole in pixels. ``ema`` is the
    decay of an average of the network, which is the result then. ``distill`` is the teacher's share of the loss; the
    teacher is the recipe's ``teacher``, for a Q-graph without one the float parent.

    A Q-graph's ranges are learned by ``quantizer``, a file of ``zoo/quant/learned``, at the peak rate ``lr_scale``
    (left out: 0.001), which does not change with ``lr`` or ``batch``: with SGD in the publication's units, with AdamW
    as a share of the range per step. The units differ: at one rate TQT, whose gradient is normalised, moves ranges of
    activations far more than LSQ, LSQ+ and PACT do. At the rate of the weights, as Esser et al. 2020 have it for LSQ,
    ranges of many bits can run away. ``dampen``,
    ``freeze``, ``standardize`` (weight normalisation) and ``sparsify`` are for a Q-graph too. ``oscillations``
    measures which weights oscillate, for the record's notes.

    ``holdout`` images of the training split are not trained on but measured each epoch: tune on them, never on test
    images. ``patience`` epochs at chance level refuse the run. ``bf16`` multiplies in bfloat16 under autocast.
    ``compile`` is for a GPU: it fuses quantizers with their neighbours. On a CPU it needs a C++ compiler and loses to
    the operations written for it. ``native`` computes ranges, BatchNorm with what clamps it, and the depthwise
    convolutions that are slow under bf16, by kernels in C++, compiled at the start, on a CPU; they sum in another order
    and round codes from float32 under bf16 too.
    """

    takes: ClassVar = ("float", "calibrated")

    epochs: int = 60
    batch: int = 128
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warm: float = 0.05
    label_smoothing: float = 0.0
    augment: bool = True
    flip: Literal["random", "alternate"] = "random"
    cutout: int = 0
    ema: float = 0.0
    distill: float = 0.0
    temperature: float = 1.0
    quantizer: str = "lsq"
    lr_scale: float | None = None
    dampen: Dampen | None = None
    freeze: Freeze | None = None
    standardize: bool = False
    sparsify: Sparsify | None = None
    oscillations: bool = False
    holdout: int = 0
    patience: int = 5
    bf16: bool = True
    compile: bool = False
    native: bool = False

    def __post_init__(self) -> None:
        """Refuse settings under which nothing is learned."""
        if self.epochs < 1 or self.batch < 1 or self.lr <= 0 or (self.lr_scale is not None and self.lr_scale < 0):
            raise ValueError("epochs, batch and lr must be positive, lr_scale not negative")
        if not 0 <= self.label_smoothing < 1 or not 0 <= self.momentum < 1 or self.weight_decay < 0:
            raise ValueError("label_smoothing and momentum must be in [0, 1), weight_decay not negative")
        if not 0 <= self.ema < 1 or not 0 <= self.distill <= 1 or self.temperature <= 0 or not 0 <= self.warm < 1:
            raise ValueError("ema and warm must be in [0, 1), distill in [0, 1], temperature positive")
        if min(self.holdout, self.cutout) < 0 or self.patience < 1:
            raise ValueError("holdout and cutout must not be negative, patience must be positive")
        known = names("zoo.quant.learned")
        if self.quantizer not in known:
            raise ValueError(f"quantizer {self.quantizer!r} is unknown (known: {', '.join(known)})")
        if self.flip == "alternate" and not self.augment:
            raise ValueError("flip is a part of augment, which is off; leave it out")
        if self.compile and self.native:
            raise ValueError("compile and native exclude each other: the one is for a GPU, the other for a CPU")
        if self.freeze is not None and (self.standardize or self.sparsify is not None):
            raise ValueError("freeze holds integers of the weights themselves: leave out standardize and sparsify")
        if self.freeze is not None and not learner(self.quantizer).freezes:
            raise ValueError(f"{self.quantizer} takes the scale from the weights, which freeze holds to that scale, "
                             "and the scale runs away: leave out freeze, or choose another quantizer")  # fmt: skip

    def __call__(self, net: fx.GraphModule, ctx: Context) -> fx.GraphModule:
        """Return the trained graph in eval mode.

        Raises DataError for images without labels, QuantError for a Q-graph that is not calibrated and a training that
        diverges or stays at chance, RecipeError for a setting that this graph has no use for.
        """
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        ranks.share(self.batch)
        quantized = any(isinstance(m, QNode) for m in net.modules())
        self._check(net, ctx, quantized, device)
        data = Data(
            ctx.calibration, device, holdout=self.holdout, augment=self.augment, cutout=self.cutout,
            alternate=self.flip == "alternate",
        )  # fmt: skip
        named = None if not self.distill else ctx.parent if ctx.teacher is None else ctx.teacher
        snapshots = self._snapshots(net, named, ctx)
        teacher = None if named is None else self._teacher(named, device)
        net = clone(net).to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        native = kernels() if self.native and device.type == "cpu" else None
        learners = attach(net, self.quantizer, self.optimizer == "adamw", native) if quantized else []
        if quantized and not learners and (self.quantizer != Train.quantizer or self.lr_scale is not None):
            raise RecipeError("train: every scale is a power of two, which tqt alone learns; choose quantizer: tqt, or "
                              "leave out quantizer and lr_scale")  # fmt: skip
        lend(net, native)
        # several processes share their statistics, which the fused BatchNorm does not
        fused = fuse(net, native) if native and not quantized and ranks.count() == 1 else {}
        if self.standardize:
            standardize.start(net)
        rate = self.lr * self.batch / 128
        # all images, where they are fewer than a batch; several processes share them evenly
        batch = min(self.batch, len(data) // ranks.count() * ranks.count() or self.batch)
        scale_rate = 1e-3 if self.lr_scale is None else self.lr_scale
        parameters, parts = optimizers.groups(net, lr=rate, weight_decay=self.weight_decay, lr_scale=scale_rate)
        if not parameters:
            raise RecipeError("train: this graph has nothing to learn; put train before integerize")
        for p in parameters:
            p.requires_grad_(True)
        loop = Loop(
            net, ranks.parallel(torch.compile(net) if self.compile else net), data,
            optimizers.optimizer(self.optimizer, parts, self.momentum),
            Objective(self.label_smoothing, self.distill, self.temperature), lambda step: 1.0, ctx.generator(),
            Log(ctx.position, int((torch.bincount(data.labels) > 0).sum()), self.patience), batch, self.epochs,
            self.bf16, learners, teacher, Average(net, self.ema) if self.ema else None, self.dampen,
            Frozen(net, self.freeze) if self.freeze else Oscillations(net) if self.oscillations else None,
            self.sparsify, snapshots,
        )  # fmt: skip
        loop.rate = partial(SCHEDULES[self.schedule], total=loop.total, warm=self.warm)
        loop.run(ctx.progress)
        ctx.earlier += loop.earlier
        ctx.augmented = self.augment
        ranks.single(net)
        loop.take_average()
        restore(net, fused)
        lend(net, None)
        self._finish(net, loop, ctx)
        return net.to("cpu").eval()

    def _check(self, net: fx.GraphModule, ctx: Context, quantized: bool, device: torch.device) -> None:
        tensorboard()
        if quantized:
            require_ranges(net, "train")
            stabilized = [n for n in ("dampen", "freeze", "standardize", "oscillations") if getattr(self, n)]
            if stabilized and not low_bit(net):
                raise RecipeError(f"train.{stabilized[0]}: no layer has weights of {LOW} or fewer bits, and others do "
                                  "not need it; leave it out")  # fmt: skip
            if self.standardize and all(layer.norm is None for layer in low_bit(net)):
                raise RecipeError("train.standardize: no layer of few bits has a BatchNorm behind it; put quantize: "
                                  "{batchnorm: merge} before it, or leave it out")  # fmt: skip
            if self.sparsify is not None:
                require_zero_level(net, "train.sparsify")
                if not self.sparsify.layers(net):
                    raise RecipeError("train.sparsify: no layer but the first has a multiple of 4 input channels; "
                                      "leave it out")  # fmt: skip
        elif self.dampen or self.freeze or self.standardize or self.sparsify or self.oscillations:
            raise RecipeError("train: dampen, freeze, standardize, sparsify and oscillations need a Q-graph; put the "
                              "steps quantize and calibrate before it")  # fmt: skip
        elif self.lr_scale is not None or self.quantizer != Train.quantizer:
            raise RecipeError("train: quantizer and lr_scale are for a Q-graph; leave them out of a float training")
        left = len(ctx.calibration) - self.holdout
        own = min(self.batch, left) // ranks.count()
        # of fewer than two Data says what is wrong
        if left >= 2 and own < 2 and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in net.modules()):
            raise RecipeError("train.batch: BatchNorm needs two images or more at a time; raise batch")
        if self.distill and ctx.teacher is None and not quantized:
            raise RecipeError("train.distill: a float network needs a teacher; name a model as the recipe's teacher")
        if self.compile and device.type == "cpu" and not any(map(shutil.which, _COMPILERS)):
            raise RecipeError(f"train.compile: none of {', '.join(_COMPILERS)} is installed, and PyTorch needs one to "
                              "compile for the CPU; install one or leave compile out")  # fmt: skip

    def _teacher(self, named: fx.GraphModule, device: torch.device) -> fx.GraphModule:
        try:
            teacher = fold_batchnorm(named)
        except GraphError:  # a teacher need not be a network that can be quantized
            teacher = clone(named)
        return teacher.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload,no-any-return]

    def _snapshots(self, net: fx.GraphModule, teacher: fx.GraphModule | None, ctx: Context) -> Snapshots | None:
        if ctx.work is None:
            return None
        parts = {
            "settings": asdict(self), "seed": ctx.seed, "position": ctx.position, "code": __version__,
            "torch": torch.__version__, "threads": torch.get_num_threads(), "cuda": torch.cuda.is_available(),
            "graph": wiring(net), "start": tensors_sha256(net.state_dict()), "images": ctx.calibration.digest(),
            "teacher": "" if teacher is None else tensors_sha256(teacher.state_dict()),
        }  # fmt: skip
        if ranks.count() > 1:
            parts["processes"] = ranks.count()
        # each process computes its own, and another processor's calibration may differ in a last bit
        identity = ranks.first(identity_of(parts))
        ctx.kept.append(ctx.work / f"{ctx.position}-train-{identity[:12]}")
        return Snapshots(ctx.kept[-1], identity, ctx.code)

    @torch.no_grad()
    def _finish(self, net: fx.GraphModule, loop: Loop, ctx: Context) -> None:
        standardize.finish(net)
        settle(net)
        for p in net.parameters():
            p.requires_grad_(False)
            p.grad = None
        name = "train" if "train" not in ctx.log else f"train_{ctx.position}"
        last = loop.log.rows[-1]
        ctx.log[name] = {"steps": loop.total, "loss_first": loop.first_loss, "loss_last_epoch": last["loss"]}
        if ranks.count() > 1:
            ctx.log[name]["processes"] = ranks.count()
        if loop.snapshots is not None and len(loop.snapshots.codes) > 1:
            ctx.log[name]["commits"] = loop.snapshots.codes
        if loop.tracked is not None:
            ctx.log[name] |= loop.tracked.facts()
        if last["holdout"] is not None:
            ctx.log[name]["holdout_top1"] = last["holdout"]
        ctx.curves += loop.log.rows
