"""Fuzzes every reader of a stranger's bytes: images, masks, annotations, tables, checkpoints, settings and HTTP.

    python -m tests.fuzz --inputs 20000 --seed 0
    python -m tests.fuzz --seed 0 --only coco-stuff:17      # reproduces one input and keeps its files

An input is accepted, or rejected with a message of one line that names the file. Everything else is a finding: another
exception, a crash, a status 5xx, more time or memory than the limit, and a file outside the target. The signals INT and
TERM end a run early; the table then counts the inputs that were read.
"""

import argparse
import re
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict, deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from threading import Event, Lock

from .readers import READERS
from .supervisor import Result, Supervisor

SHOWN_PER_KIND = 2
PROGRESS = 250


def kind_of(detail: str) -> str:
    """Returns the detail of a finding without the text that differs between inputs."""
    place = detail.rpartition(" at ")[2] if " at " in detail else re.sub(r"[/'\"].*", "", detail)
    return f"{detail.partition(':')[0][:60]} at {place}"


class Run:
    """The results of a run, which several threads add to.

    Attributes:
        results: results by reader.
        kinds: names of the inputs by kind of finding.
    """

    def __init__(self, flags: argparse.Namespace) -> None:
        self.results: dict[str, list[Result]] = defaultdict(list)
        self.kinds: dict[str, list[str]] = defaultdict(list)
        self.stop = Event()
        self._flags, self._lock = flags, Lock()
        self._inputs: dict[str, deque[tuple[str, int]]] = defaultdict(deque)
        for name, index in _inputs(flags):
            self._inputs[READERS[name].group].append((name, index))

    def process(self, job: int, folder: Path) -> None:
        """Runs inputs one after another until none is left or `stop` is set."""
        groups = sorted(self._inputs, reverse=True)
        first = job % len(groups)  # the jobs begin with different groups, because the start of a group takes long
        with Supervisor(folder, self._flags.seed) as supervisor:
            for group in groups[first:] + groups[:first]:
                while (entry := self._next(group)) is not None:
                    result = supervisor.run(*entry)
                    with self._lock:
                        self._add(*entry, result)

    def _next(self, group: str) -> tuple[str, int] | None:
        with self._lock:
            return self._inputs[group].popleft() if self._inputs[group] and not self.stop.is_set() else None

    def _add(self, name: str, index: int, result: Result) -> None:
        self.results[name].append(result)
        if result.status == "finding":
            self.kinds[kind_of(result.detail)].append(f"{name}:{index}")
        is_shown = result.status == "finding" and len(self.kinds[kind_of(result.detail)]) <= SHOWN_PER_KIND
        if is_shown or self._flags.only:
            print(f"{result.status}  {name}:{index}  {result.detail}\n  files: {result.folder}", flush=True)
        if (total := self.total()) % PROGRESS == 0:
            print(f"{total} inputs done, {sum(map(len, self._inputs.values()))} left", flush=True)

    def total(self) -> int:
        return sum(map(len, self.results.values()))


def main() -> int:
    flags = _parse_flags()
    root = flags.folder or Path(tempfile.mkdtemp(prefix="segray-fuzz-"))
    started_at = time.monotonic()
    run = Run(flags)
    signal.signal(signal.SIGTERM, lambda *_: run.stop.set())
    signal.signal(signal.SIGINT, lambda *_: run.stop.set())
    with ThreadPoolExecutor(flags.jobs) as pool:
        for job in [pool.submit(run.process, number, root / f"job-{number}") for number in range(flags.jobs)]:
            job.result()
    seconds = time.monotonic() - started_at
    _print_table(run.results)
    for kind, names in run.kinds.items():
        print(f"{len(names):>5} x {kind[:160]}: {', '.join(names[:4])}")
    findings = sum(map(len, run.kinds.values()))
    print(f"{run.total()} inputs, seed {flags.seed}, {seconds:.0f} s: {findings} findings")
    return 1 if findings or run.stop.is_set() else 0


def _parse_flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "tests.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=2000, help="number of inputs over all readers")
    parser.add_argument("--seed", type=int, default=0, help="seed of all inputs")
    parser.add_argument(
        "--only", metavar="READER[:INDEX,...]", help=f"one reader or some inputs; readers: {', '.join(READERS)}"
    )
    parser.add_argument("--jobs", type=int, default=1, help="number of processes that read inputs at once")
    parser.add_argument("--folder", type=Path, help="folder of the inputs; defaults to a new temporary folder")
    flags = parser.parse_args()
    if flags.only and flags.only.partition(":")[0] not in READERS:
        parser.error(f"--only is {flags.only}; expected one of {', '.join(READERS)}")
    return flags


def _inputs(flags: argparse.Namespace) -> list[tuple[str, int]]:
    """Returns the inputs in random order: each reader's share is in proportion to its weight."""
    if flags.only:
        name, _, index = flags.only.partition(":")
        numbers = map(int, index.split(",")) if index else range(flags.inputs)
        return [(name, number) for number in numbers]
    total = sum(reader.weight for reader in READERS.values())
    counts = {name: max(1, round(flags.inputs * reader.weight / total)) for name, reader in READERS.items()}
    counts[max(counts, key=lambda name: counts[name])] += flags.inputs - sum(counts.values())
    inputs = [(name, index) for name, count in counts.items() for index in range(count)]
    Random(flags.seed).shuffle(inputs)  # an interrupted run has covered every reader
    return inputs


def _print_table(results: dict[str, list[Result]]) -> None:
    """Prints counts, processor time per input, and the longest wall time of each reader."""
    columns = ("inputs", "accepted", "rejected", "findings", "mean ms", "max s", "wall s")
    print(f"{'reader':<18} " + " ".join(f"{column:>9}" for column in columns))
    for name, group in sorted(results.items()):
        counts = Counter(result.status for result in group)
        cpu_s = [result.cpu_s for result in group]
        print(
            f"{name:<18} {len(group):>9} {counts['accepted']:>9} {counts['rejected']:>9} {counts['finding']:>9} "
            f"{1000 * sum(cpu_s) / len(group):>9.1f} {max(cpu_s):>9.2f} {max(entry.wall_s for entry in group):>9.2f}"
        )


if __name__ == "__main__":
    sys.exit(main())
