"""Ours against theirs in one run: ``python -m benchmarks.peers.compare --aimet PY --brevitas PY``."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from zoo.errors import ZooError
from zoo.pipeline import cpu_name
from zoo.progress import bar

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "benchmarks" / "peers.json"
# what counts as the step itself: our gptq corrects biases as it goes
STAGES = {"adaround": ("adaround",), "gptq": ("gptq", "correct_bias")}


def measure(python: str, module: str, words: list[str], threads: int) -> dict[str, Any]:
    """Run a measurement in another interpreter and return what it printed last; ZooError where it fails."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)}
    line = [python, "-m", f"benchmarks.peers.{module}", *words, "--threads", str(threads)]
    try:
        done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)
    except OSError as error:
        raise ZooError(f"{module}: cannot start {python} ({error}); give the environment's python") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ZooError(f"{module}: {last}; run it alone to see more: {' '.join(line[1:])}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def spent(found: dict[str, Any], step: str, kind: str) -> dict[str, float]:
    """Return the seconds of one kind (wall or cpu): of the step alone, and of everything from the float network on."""
    seconds = found["seconds"]
    return {
        "step": sum(seconds[stage][kind] for stage in STAGES[step] if stage in seconds),
        "total": seconds["total"][kind],
    }


def compare(step: str, module: str, peer: str, words: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Measure both sides in turn and return them with ``times_faster``: the median of theirs / ours over rounds."""
    pairs: list[dict[str, dict[str, Any]]] = []
    for i in range(options.rounds):
        extra = ["--top1", str(options.top1)] if i == 0 and options.top1 else []
        runs = {"ours": (sys.executable, "ours", [step, *words]), "theirs": (peer, module, words)}
        order = list(runs) if i % 2 == 0 else list(reversed(runs))
        pairs.append({side: measure(*runs[side][:2], runs[side][2] + extra, options.threads) for side in order})
    faster = {
        kind: {
            part: round(
                statistics.median(
                    spent(pair["theirs"], step, kind)[part] / spent(pair["ours"], step, kind)[part] for pair in pairs
                ),
                2,
            )
            for part in ("step", "total")
        }
        for kind in ("wall", "cpu")
    }
    return {"times_faster": faster, "rounds": options.rounds, **pairs[0]}


def main() -> int:
    """Measure what an environment was given for, print it, write it; return the exit code."""
    parser = argparse.ArgumentParser(description="Ours against AIMET and Brevitas, in one run.")
    parser.add_argument("--aimet", metavar="PY", help="python of an environment with aimet-torch")
    parser.add_argument("--brevitas", metavar="PY", help="python of an environment with brevitas")
    parser.add_argument("--rounds", type=int, default=1, help="paired runs, of which the median ratio counts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=100, help="iterations per layer (adaround)")
    parser.add_argument("--adaround-images", type=int, default=256)
    parser.add_argument("--gptq-images", type=int, default=128)
    parser.add_argument("--top1", type=int, default=1000, metavar="N", help="test images, 0 for speed alone")
    parser.add_argument("--output", type=Path, default=OUT)
    options = parser.parse_args()
    if not (options.aimet or options.brevitas):
        parser.error("give --aimet, --brevitas or both")
    if min(options.rounds, options.threads) < 1:
        parser.error("rounds and threads must be positive")
    adaround = ["--images", str(options.adaround_images), "--iterations", str(options.iterations)]
    gptq = ["--images", str(options.gptq_images)]
    todo = [("adaround", "aimet_adaround", options.aimet, adaround), ("gptq", "brevitas_gptq", options.brevitas, gptq)]
    found: dict[str, Any] = {"machine": cpu_name(), "threads": options.threads}
    try:
        for step, module, peer, words in bar([t for t in todo if t[2]], "peers"):
            found[step] = compare(step, module, peer, words, options)
    except ZooError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    text = json.dumps(found, indent=2) + "\n"
    options.output.write_text(text)
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
