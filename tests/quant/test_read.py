"""``quant.read``: what a layer multiplies has fewer bits than what sums and pools read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from tests.networks import images, start
from tests.steps.test_steps import apply, error
from zoo.context import Context, Images
from zoo.errors import RecipeError
from zoo.graph.trace import trace
from zoo.integer.simulated import build_simulated
from zoo.models import mobilenetv2_cifar
from zoo.pipeline import bits_label
from zoo.quant import layers as q
from zoo.quant.insert import insert_quantizers
from zoo.quant.spec import Format, Override, QuantConfig

ENDS = (Override(":first", weight={"bits": 8}), Override(":last", weight={"bits": 8}, input={"bits": 8}))


def reading(bits: int, *overrides: Override) -> QuantConfig:
    return QuantConfig(
        weight=Format(bits, granularity="per_channel"),
        read=Format(bits, symmetric=False),
        overrides=(*ENDS, *overrides),
    )


def source(net: fx.GraphModule, name: str, index: int = 0) -> str:
    """Return the module whose tensor a module reads, max pools and flattens aside."""
    (node,) = (n for n in net.graph.nodes if n.target == name)
    node = node.args[index]
    while isinstance(net.get_submodule(str(node.target)), q.PASSING):
        node = node.args[0]
    return str(node.target)


def bits(net: fx.GraphModule, name: str) -> int:
    return int(net.get_submodule(name).out.fmt.bits)


def requantizations(net: fx.GraphModule) -> list[str]:
    return [n for n, m in net.named_modules() if isinstance(m, q.QRequantize)]


def resnet(config: QuantConfig) -> tuple[fx.GraphModule, Context]:
    net, ctx = start()
    ctx = replace(ctx, quant=config)
    return apply(net, ctx, ("fold_batchnorm", {}), ("quantize", {})), ctx


def test_layers_read_few_bits_and_all_else_reads_many() -> None:
    net, _ = resnet(reading(2))
    weighted = [n for n, m in net.named_modules() if isinstance(m, q.QWeighted)]
    assert [bits(net, source(net, n)) for n in weighted if n not in ("conv", "fc")] == [2] * (len(weighted) - 2)
    assert bits(net, source(net, "conv")) == 8 and bits(net, source(net, "fc")) == 8
    # a layer and a sum read the stem; only the pool reads the last sum
    assert requantizations(net) == ["conv_read"] and source(net, "block1.conv1") == "conv_read"
    assert source(net, "add", 1) == "conv" and bits(net, "conv") == 8
    assert bits(net, "add") == 2 and bits(net, "add_2") == 8
    assert not net.conv_read.out.signed, "behind a ReLU no code is spent on negative values"


def test_readers_of_one_tensor_share_a_requantization_and_differ_where_asked() -> None:
    model = mobilenetv2_cifar.build(10)
    net = trace(model.eval(), torch.zeros(1, 3, 32, 32))
    graph = apply(net, Context(reading(4), None, net), ("fold_batchnorm", {}))  # type: ignore[arg-type]
    plain = insert_quantizers(graph, reading(4))
    made = requantizations(plain)
    sums = [n for n, m in plain.named_modules() if isinstance(m, q.QAdd)]
    assert len(sums) == 10
    for name in sums:
        assert all(bits(plain, source(plain, name, i)) == 8 for i in (0, 1)), name
    for node in plain.graph.nodes:
        if node.target in made:
            assert all(isinstance(plain.get_submodule(str(u.target)), q.QWeighted) for u in node.users)
    readers = {source(plain, n): n for n, m in plain.named_modules() if isinstance(m, q.QWeighted)}
    some = readers[made[-1]]
    other = insert_quantizers(graph, reading(4, Override(some, input={"bits": 6})))
    assert bits(other, source(other, some)) == 6 and bits(plain, source(plain, some)) == 4


class Halves(nn.Module):
    """Half of the channels goes through a layer, the other half into a sum, as in networks of partial convolutions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.middle = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.last, self.fc = nn.Conv2d(8, 8, 1), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.stem(x).relu().chunk(2, 1)
        x = self.last(torch.cat([self.middle(first).relu() + second, second], 1)).relu()
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


def test_slices_pass_codes_on_to_layers_and_sums() -> None:
    pictures = images(64)
    net = trace(Halves().eval(), pictures[:1])
    ctx = Context(reading(4), Images(pictures), net)
    quantized = apply(net, ctx, ("quantize", {}), ("calibrate", {"images": 64}))
    # the layer reads 4 bits of its half, the sum 8 of the other
    assert requantizations(quantized) == ["slice_read"]
    assert source(quantized, "middle") == "slice_read" and source(quantized, "slice_read") == "stem"
    assert source(quantized, "add", 1) == "stem" and (bits(quantized, "stem"), bits(quantized, "slice_read")) == (8, 4)
    assert not quantized.slice_read.out.signed, "what a slice takes behind a ReLU is not negative"
    integer = apply(quantized, ctx, ("integerize", {}))
    program = integer.meta["program"]
    assert [n.op for n in program.nodes].count("slice") == 2
    simulated = build_simulated(program, "tflite")
    with torch.no_grad():
        logits, fake = integer(pictures), simulated(pictures)
    assert len(logits.unique()) > 100
    assert float((logits - fake).square().mean() / fake.var()) < 1e-3


@pytest.mark.parametrize("semantics", ["tflite", "float32", "floor"])
def test_integers_follow_the_quantized_graph(semantics: str) -> None:
    net, ctx = resnet(reading(4))
    quantized = apply(net, ctx, ("calibrate", {"images": 64}))
    found: dict[str, Any] = {}
    integer = apply(quantized, ctx, ("integerize", {"semantics": semantics}))
    hooks = [(integer.get_submodule(n), quantized.get_submodule(n)) for n in ("conv", "conv_read", "block1.conv1")]
    for i, pair in enumerate(hooks):
        for j, module in enumerate(pair):
            module.register_forward_hook(lambda m, args, out, key=(i, j): found.__setitem__(key, out))
    with torch.no_grad():
        integer(images(64)), quantized(images(64))
    step = quantized.get_submodule("conv_read").out.scale.detach()
    codes, real = found[1, 0], found[1, 1] / step
    assert len(codes.unique()) > 8
    assert float((codes - real).abs().max()) <= 1.01
    assert float((codes != real.round()).float().mean()) < 0.05


def test_post_training_steps_take_the_graph_and_sums_of_8_bits_lose_less() -> None:
    calibrated = [("fold_batchnorm", {}), ("quantize", {}), ("calibrate", {"images": 64})]
    net, ctx = start()
    plain = QuantConfig(weight=Format(4, granularity="per_channel"), act=Format(4, symmetric=False), overrides=ENDS)
    found = [error(apply(net, replace(ctx, quant=c), *calibrated), ctx) for c in (plain, reading(4))]
    assert found[1] < 0.5 * found[0]
    for step in ("correct_bias", "gptq"):
        tuned = apply(net, replace(ctx, quant=reading(4)), *calibrated, (step, {"images": 64}))
        assert error(tuned, ctx) < found[1], step
    # a requantization between two layers is no place to move a scale across
    moved = [("fold_batchnorm", {}), ("quantize", {}), ("equalize_activations", {"images": 64})]
    graph = apply(net, replace(ctx, quant=reading(4)), *moved)
    with torch.no_grad():
        assert torch.allclose(graph(images(8)), net(images(8)), atol=1e-5)


def test_the_label_tells_what_layers_multiply() -> None:
    from zoo.integer.program import extract
    from zoo.resolve import load

    net, ctx = resnet(reading(3))
    quantized = apply(net, ctx, ("calibrate", {"images": 64}))
    program = extract(quantized, (3, 16, 16), load("zoo.integer.semantics", "tflite", "test"))
    assert bits_label(program) == "W3A3"
    assert [n.op for n in program.nodes].count("requantize") == 1


def test_an_override_of_what_only_layers_read_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"match 'block1.conv1' matches nothing.*read"):
        resnet(reading(2, Override("block1.conv1", act={"bits": 8})))
    with pytest.raises(ValueError, match=r"read\.granularity must be per_tensor"):
        QuantConfig(read=Format(4, granularity="per_channel"))


def test_a_module_of_the_requantizations_name_is_left_alone() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.a_read, self.b = (nn.Conv2d(3, 3, 1) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x)
            return self.b(self.a_read(y) + y)  # type: ignore[no-any-return]

    net = insert_quantizers(trace(Net().eval(), torch.zeros(1, 3, 8, 8)), replace(reading(4), overrides=()))
    assert requantizations(net) == ["a_read_"] and isinstance(net.get_submodule("a_read"), q.QConv2d)
