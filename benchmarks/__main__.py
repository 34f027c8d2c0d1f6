"""Every benchmark that a CPU can do, each in a process of its own: `make bench`.

    python -m benchmarks [--tiny] [--out FOLDER]

The backend table that ``auto`` reads (scmoe/nn/fastest.json) is left as it is; renew it with
``python -m benchmarks.experts --choose``.
"""

import os
import subprocess
import sys
import time

from benchmarks.common import THREADS

NAMES = ("epochs", "parts", "experts", "scaling")


def main() -> None:
    """Run them in turn; stop at the first that fails."""
    for name in NAMES:
        start = time.monotonic()
        command = [sys.executable, "-m", f"benchmarks.{name}", *sys.argv[1:]]
        threads = os.environ | {"OMP_NUM_THREADS": str(THREADS), "MKL_NUM_THREADS": str(THREADS)}
        if subprocess.run(command, env=threads).returncode:
            sys.exit(f"benchmarks.{name} failed")
        print(f"\n{name}: {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
