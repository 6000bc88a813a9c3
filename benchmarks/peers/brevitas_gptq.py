"""Brevitas: ``python -m benchmarks.peers.brevitas_gptq`` in an environment with brevitas."""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import torch
from brevitas.graph.quantize import preprocess_for_quantize
from brevitas_examples.imagenet_classification.ptq.ptq_common import (
    apply_bias_correction,
    apply_gptq,
    calibrate,
    quantize_model,
)

from benchmarks.peers._common import Work, arguments


def main() -> None:
    """Quantize by the functions of Brevitas' own ImageNet example, in its order.

    Of its defaults these are changed: weights have a scale per channel, as ours; activations are asymmetric, since
    symmetric ones are signed in this backend and would waste a bit after ReLU6; ReLU6 is kept, the graph is not
    equalized and columns are taken in order of their Hessian diagonal, all of which gave better accuracy here.
    """
    options = arguments("gptq")
    work = Work("gptq", options)
    loader = [(batch, None) for batch in work.batches()]
    with work.stage("prepare"):
        model = preprocess_for_quantize(work.model, equalize_iters=0, relu6_to_relu=False)
        # of its backends only this one knows 8-bit first and last layers
        net = quantize_model(
            model, backend="layerwise", weight_bit_width=4, act_bit_width=8, bias_bit_width=32,
            weight_quant_granularity="per_channel", act_quant_percentile=99.999, act_quant_type="asym",
            scale_factor_type="float_scale", quant_format="int", layerwise_first_last_bit_width=8,
        )  # fmt: skip
        net.eval()
        with torch.no_grad():
            net(loader[0][0])  # sets the weight scales, which gptq asks for
    with work.stage("calibrate"):
        calibrate(loader, net)
    with work.stage("gptq"):
        apply_gptq(loader, net, act_order=True)
    with work.stage("correct_bias"):
        apply_bias_correction(loader, net)
    work.report("brevitas", net, "weights by maximum, activations by percentile, gptq with act_order, bias correction")


if __name__ == "__main__":
    main()
