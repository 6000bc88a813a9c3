from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from zoo.artifact.checkpoint import Network

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "format.md"


def test_the_reader_of_the_document_reads_every_weight(network: Network, folder: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.S)
    space: dict[str, Any] = {}
    exec(code, space)
    simulated = dict(network.program.tensors)
    for node in network.program.nodes:
        if node.weight is not None:
            scale = simulated[f"{node.name}.weight_scale"].double().numpy()
            codes = simulated[f"{node.name}.weight"].double().numpy()
            zero = simulated.get(f"{node.name}.weight_zero_point")
            codes = codes - (0 if zero is None else zero.double().numpy().reshape([-1] + [1] * (codes.ndim - 1)))
            wanted = codes * scale.reshape([-1] + [1] * (codes.ndim - 1))
            assert np.allclose(space["weights"](str(folder), node.name), wanted, rtol=1e-6), node.name
    assert {n.weight.bits for n in network.program.nodes if n.weight is not None} == {2, 3, 4, 8}


def test_the_document_names_every_file_and_operation(folder: Path) -> None:
    text = DOCUMENT.read_text()
    assert all(f"`{p.name}`" in text for p in folder.iterdir())
