"""AIMET: ``python -m benchmarks.peers.aimet_adaround`` in an environment with aimet-torch."""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from aimet_torch.adaround.adaround_weight import Adaround, AdaroundParameters
from aimet_torch.batch_norm_fold import fold_all_batch_norms
from aimet_torch.common.defs import QuantScheme
from aimet_torch.common.quantsim_config.utils import get_path_for_per_channel_config
from aimet_torch.model_preparer import prepare_model
from aimet_torch.quantsim import QuantizationSimModel
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.peers._common import BATCH, Work, arguments


def main() -> None:
    """Quantize by AIMET's public functions: prepare, fold, AdaRound, encodings of the activations."""
    options = arguments("adaround")
    work = Work("adaround", options)
    batches = work.batches()
    sample = batches[0][:1]
    per_channel = get_path_for_per_channel_config()
    scheme = QuantScheme.post_training_tf_enhanced

    def forward(net: nn.Module, batch: Tensor | list[Tensor]) -> Tensor:
        output: Tensor = net(batch if isinstance(batch, Tensor) else batch[0])
        return output

    with tempfile.TemporaryDirectory() as scratch:
        with work.stage("prepare"):
            model = prepare_model(work.model)
            fold_all_batch_norms(model, input_shapes=tuple(sample.shape))
        layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
        ends = (next(iter(layers)), next(reversed(layers)))
        eight = [(layers[name], 8) for name in ends]
        loader = DataLoader(TensorDataset(torch.cat(batches)), BATCH)
        with work.stage("adaround"):
            parameters = AdaroundParameters(loader, len(loader), options.iterations, forward_fn=forward)
            model = Adaround.apply_adaround(
                model, sample, parameters, scratch, "adaround", 4, eight, None, scheme, per_channel
            )
        with work.stage("calibrate"):
            sim = QuantizationSimModel(
                model, sample, scheme, default_output_bw=8, default_param_bw=4, config_file=per_channel
            )
            for name in ends:
                sim.model.get_submodule(name).param_quantizers["weight"].bitwidth = 8
            sim.set_and_freeze_param_encodings(str(Path(scratch) / "adaround.encodings"))
            with torch.no_grad():
                sim.compute_encodings(lambda net: [net(batch) for batch in batches])
    work.report("aimet-torch", sim.model, "per-channel configuration, tf_enhanced, its own defaults otherwise")


if __name__ == "__main__":
    main()
