"""Speed and memory of training, as ratios: `make bench`.

    python -m benchmarks [epochs] [parts] [experts] [scaling] [processes] [large] [gpu]
        [--tiny] [--out FOLDER]

Each case is measured in a process of its own and leaves ``<out>/<case>.json``; named none, all but
the last three. ``--choose`` lets the sweep's winners into scmoe/nn/fastest.json, the table that
``auto`` reads.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks import common
from benchmarks.large import large
from benchmarks.speed import epochs, experts, gpu, parts, processes, scaling

CASES = {case.__name__: case for case in (epochs, parts, experts, scaling, processes, large, gpu)}
ASKED = ("processes", "large", "gpu")  # only where they are named: long, or a device
THREADS = 2


def main() -> None:
    """Run the cases in turn; stop at the first that fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", help=", ".join(CASES))
    parser.add_argument("--out", type=Path, default=common.RESULTS)
    parser.add_argument("--tiny", action="store_true", help="sizes so small that they say nothing")
    parser.add_argument("--choose", action="store_true")
    asked = parser.parse_args()
    if unknown := set(asked.cases) - set(CASES):
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(CASES)}")
    if len(asked.cases) == 1:
        torch.set_num_threads(THREADS)
        start = time.perf_counter()
        options = {"choose": asked.choose} if asked.cases == ["experts"] else {}
        tables = CASES[asked.cases[0]](asked.tiny, **options)
        note = {"seconds": round(time.perf_counter() - start, 1), "tiny": asked.tiny}
        common.write(asked.out / f"{asked.cases[0]}.json", tables, note)
        return
    flags = [word for word in sys.argv[1:] if word not in CASES]
    for case in asked.cases or [name for name in CASES if name not in ASKED]:
        threads = os.environ | {"OMP_NUM_THREADS": str(THREADS), "MKL_NUM_THREADS": str(THREADS)}
        command = [sys.executable, "-m", "benchmarks", case, *flags]
        if subprocess.run(command, env=threads).returncode:
            sys.exit(f"{case} failed")


if __name__ == "__main__":
    main()
