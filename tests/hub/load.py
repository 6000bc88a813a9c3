"""``python -m tests.hub.load NAME``: load a checkpoint as a user does, and print its name and what it computes."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence

import torch

import zoo
from zoo.errors import ZooError


@torch.no_grad()
def main(arguments: Sequence[str]) -> int:
    try:
        net = zoo.load(arguments[0], integer=True)
    except ZooError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    logits = net(net.preprocess.batch(torch.arange(28 * 28, dtype=torch.uint8).reshape(1, 28, 28, 1).numpy()))
    print(net.config["name"], hashlib.sha256(logits.numpy().tobytes()).hexdigest())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
