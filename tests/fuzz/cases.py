"""One case: change a folder, load it under watch, and say how that ended."""

from __future__ import annotations

import resource
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from tests.fuzz.folders import Folder, originals
from tests.fuzz.mutations import mutate
from tests.fuzz.watch import watching
from zoo.artifact import checkpoint
from zoo.errors import ZooError

MEMORY = 2 * 2**30  # bytes that all cases together may need at most
SMALL = 2**22  # elements: only networks whose tensors stay below are run, the others only built


class Loader:
    """Runs cases in one scratch folder; ``outcomes`` counts how they ended, by the change that was made."""

    def __init__(self, scratch: Path) -> None:
        self.folder = scratch / "case"
        (scratch / "outside").write_text("nobody's business")
        self.outcomes: Counter[str] = Counter()
        self.cases: list[tuple[Folder, Tensor, Tensor]] = []
        for folder, x in originals(scratch):
            folder.write(self.folder)
            found = self.load(x, fake=True)
            assert isinstance(found, Tensor), found
            self.cases.append((folder, x, found))
        self.start = peak()

    def load(self, x: Tensor, *, fake: bool) -> Tensor | str:
        """Return the logits, or our own refusal's text; anything else that is raised is a finding."""
        try:
            held = checkpoint.read(self.folder)
            network = held.network(integer=True)
            if fake:
                held.network()
        except ZooError as error:
            message = str(error)
            assert message and "\n" not in message, f"not one line: {message!r}"
            assert len(message) < 1500, f"{len(message)} characters: {message[:200]!r}"
            return message
        shape = held.program.input_shape
        largest = max(module_size(network, held.program.nodes))
        if shape != tuple(x.shape[1:]):
            x = torch.zeros(1, *shape) if shape[0] * shape[1] * shape[2] < SMALL else torch.empty(0)
        if largest > SMALL or x.numel() == 0:
            return "large"
        with torch.no_grad():
            logits = network(x)
        assert logits.shape == (len(x), held.config["num_classes"]), f"logits of {list(logits.shape)}"
        assert bool(torch.isfinite(logits).all()), "logits that are not finite"
        return logits  # type: ignore[no-any-return]

    def run(self, r: Random) -> None:
        """Draw, change, load; AssertionError says which promise did not hold."""
        original, x, expected = self.cases[r.randrange(len(self.cases))]
        folder = original.copy()
        signed = mutate(folder, r)
        folder.write(self.folder)
        fake = not r.randrange(4)  # drawn outside: Hypothesis reads files of its own
        with watching(self.folder) as seen:
            found: Any = self.load(x, fake=fake)
        assert not seen, f"{folder.notes}: {seen[:3]}"
        if isinstance(found, Tensor) and not signed:
            assert torch.equal(found, expected), f"{folder.notes}: other logits behind the old hashes"
        assert peak() - self.start < MEMORY, f"{folder.notes}: {peak() - self.start} more bytes than before"
        kind = "loaded" if isinstance(found, Tensor) else "large" if found == "large" else "refused"
        for note in folder.notes:
            self.outcomes[f"{note} {kind}"] += 1
        self.outcomes[kind] += 1


def module_size(network: Any, nodes: Any) -> list[int]:
    """Return the number of elements of each node's output for one image."""
    from zoo.integer.shapes import shapes

    found = shapes(network.program)
    return [torch.Size(found[node.name]).numel() for node in nodes]


def peak() -> int:
    """Return the largest memory that this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
