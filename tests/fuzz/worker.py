"""Process that runs inputs one after another, on request of the parent, and reports the outcomes.

Each line of standard input is `READER INDEX SEED FOLDER`. The report is one line of JSON on the original standard
output. A crash or a time limit ends this process, and the parent starts another.
"""

import contextlib
import faulthandler
import json
import os
import resource
import shutil
import sys
import time
import warnings
from pathlib import Path
from random import Random

MEMORY_BYTES = 4 * 2**30
"""Address space that one input may add to the process."""


def limit_memory() -> None:
    """Limits the address space to its current size plus MEMORY_BYTES."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY_BYTES, hard))


def main() -> None:
    reports = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries print to standard output
    faulthandler.enable()
    sys.dont_write_bytecode = True
    warnings.simplefilter("ignore")
    from .reader import run_input
    from .readers import READERS, start_group

    with start_group(sys.argv[1], Path(sys.argv[2])):
        print("{}", file=reports)
        for line in sys.stdin:
            name, index, seed, folder = line.rstrip("\n").split(" ", 3)
            limit_memory()
            started_at, cpu_before_s = time.monotonic(), time.process_time()
            outcome = run_input(READERS[name], make_generator(seed, name, index), Path(folder))
            times = {"cpu_s": time.process_time() - cpu_before_s, "wall_s": time.monotonic() - started_at}
            if outcome.status != "finding":
                shutil.rmtree(folder, ignore_errors=True)
            print(json.dumps({"status": outcome.status, "detail": outcome.detail, **times}), file=reports)
    with contextlib.suppress(OSError):
        reports.close()


def make_generator(seed: object, name: str, index: object) -> Random:
    """Returns the generator of one input; it does not depend on the other inputs."""
    return Random(f"{seed}/{name}/{index}")


if __name__ == "__main__":
    main()
    os._exit(0)  # threads of a server must not delay the end
