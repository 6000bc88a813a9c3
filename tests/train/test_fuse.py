"""A float network whose BatchNorms are fused with what follows trains as it did."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.compiler import needs_compiler
from zoo.graph import ops
from zoo.graph.trace import trace
from zoo.native.kernels import kernels
from zoo.train.fuse import FusedNorm, fuse, lend, restore

pytestmark = needs_compiler


class Net(nn.Module):
    """ReLU and ReLU6 behind BatchNorm, a BatchNorm that two additions read, and a ReLU that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm, self.stem_act = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU6()
        self.left, self.left_norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.right, self.right_norm, self.act = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU()
        self.last, self.last_norm = nn.Conv2d(8, 5, 1), nn.BatchNorm2d(5, eps=1e-3, momentum=0.3)
        self.last_act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_act(self.stem_norm(self.stem(x)))
        left = self.left_norm(self.left(x))
        x = self.act(self.act(self.right_norm(self.right(x))) + left) + left
        return self.last_act(self.last_norm(self.last(x))).mean((2, 3))


def start() -> tuple[torch.fx.GraphModule, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(8, 3, 12, 12)
    model = Net()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -1.0, 4.0)
            nn.init.uniform_(module.bias, -1.0, 1.0)
    net = trace(model.eval(), x[:1]).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for p in net.parameters():
        p.requires_grad_(True)
    return net, x.contiguous(memory_format=torch.channels_last)


def learned(net: torch.fx.GraphModule, x: Tensor) -> dict[str, Tensor]:
    """Return the output in training, all gradients and all buffers."""
    y = net.train()(x)
    (y * torch.linspace(-1.0, 1.0, y.numel()).reshape(y.shape)).sum().backward()
    grads = {f"grad {n}": p.grad for n, p in net.named_parameters() if p.grad is not None}
    return {"y": y.detach()} | grads | {n: b.clone() for n, b in net.named_buffers()}


def test_output_gradients_and_statistics_stay() -> None:
    net, x = start()
    plain = learned(net, x)
    net, _ = start()
    replaced = fuse(net, kernels())
    # the activations that alone read a BatchNorm are fused with it; that of the sum is not
    assert sorted(replaced) == sorted(
        n
        for n, m in start()[0].named_modules()
        if isinstance(m, nn.BatchNorm2d) or n in ("stem_act", "act", "last_act")
    )
    fused = learned(net, x)
    assert fused.keys() == plain.keys() and len(plain) == 1 + 16 + 12
    for name, value in plain.items():
        assert torch.allclose(fused[name], value, rtol=1e-3, atol=1e-4), name


def test_a_fused_network_in_bfloat16_keeps_its_type() -> None:
    net, x = start()
    fuse(net, kernels())
    kinds: list[torch.dtype] = []
    for module in net.modules():
        if isinstance(module, FusedNorm):
            module.register_forward_hook(lambda _module, _inputs, y: kinds.append(y.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        y = net.train()(x)
    assert kinds == [torch.bfloat16] * 4
    y.float().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


def test_restoring_gives_the_modules_back_with_what_was_learned() -> None:
    net, x = start()
    names, kinds = list(net.state_dict()), {n: type(m) for n, m in net.named_modules()}
    replaced = fuse(net, kernels())
    assert list(net.state_dict()) == names and any(isinstance(m, FusedNorm) for m in net.modules())
    net.train()(x).sum().backward()
    with torch.no_grad():
        for p in net.parameters():
            p.sub_(0.01)
        expected, state = net.eval()(x), {n: t.clone() for n, t in net.state_dict().items()}
    restore(net, replaced)
    assert {n: type(m) for n, m in net.named_modules()} == kinds and not any(m.training for m in net.modules())
    assert all(torch.equal(net.state_dict()[n], t) for n, t in state.items())
    assert torch.equal(net(x), expected)
    assert float(net.state_dict()["stem_norm.num_batches_tracked"]) == 1


def test_one_value_per_channel_is_refused_as_by_pytorch() -> None:
    net, x = start()
    fuse(net, kernels())
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        net.train()(x[:1, :, :3, :3])


@pytest.mark.parametrize("grad", [True, False])
def test_without_training_a_fused_norm_is_the_two_modules(grad: bool) -> None:
    net, x = start()
    with torch.set_grad_enabled(grad):
        expected = net.eval()(x)
        fuse(net, kernels())
        assert torch.equal(net(x), expected)


def test_convolutions_are_lent_the_kernels() -> None:
    net, _ = start()
    convolutions = [m for m in net.modules() if isinstance(m, ops.Conv2d)]
    assert len(convolutions) == 4
    for given in (kernels(), None):
        lend(net, given)
        assert all(m.kernels is given for m in convolutions)
