"""Brevitas: ``python -m benchmarks.peers.brevitas_gptq`` in an environment with brevitas."""

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
    """Quantize by the functions of Brevitas' own ImageNet example, in its order and with its defaults."""
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
            weight_param_method="mse",
        )  # fmt: skip
        net.eval()
        with torch.no_grad():
            net(loader[0][0])
    with work.stage("calibrate"):
        calibrate(loader, net)
    with work.stage("gptq"):
        apply_gptq(loader, net)
    with work.stage("correct_bias"):
        apply_bias_correction(loader, net)
    work.report("brevitas", net, "mse weight scales, percentile activations, gptq, bias correction")


if __name__ == "__main__":
    main()
