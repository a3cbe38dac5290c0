"""Fuzzes every reader of a stranger's bytes: images, masks, annotations, tables, checkpoints, settings and HTTP.

    python -m tests.fuzz --inputs 20000 --seed 0
    python -m tests.fuzz --seed 0 --only coco-stuff:17      # reproduces one input and keeps its files

An input is accepted, or rejected with a message of one line that names the file. Everything else is a finding: another
exception, a crash, a status 5xx, more time or memory than the limit, and a file outside the target.
"""

import argparse
import re
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from random import Random

from .readers import READERS
from .supervisor import Result, Supervisor

SHOWN_PER_KIND = 2


def kind_of(detail: str) -> str:
    """Returns the detail of a finding without the text that differs between inputs."""
    place = detail.rpartition(" at ")[2] if " at " in detail else re.sub(r"[/'\"].*", "", detail)
    return f"{detail.partition(':')[0][:60]} at {place}"


def main() -> int:
    flags = _parse_flags()
    root = flags.folder or Path(tempfile.mkdtemp(prefix="segray-fuzz-"))
    root.mkdir(parents=True, exist_ok=True)
    started_at = time.monotonic()
    results: dict[str, list[Result]] = defaultdict(list)
    kinds: dict[str, list[str]] = defaultdict(list)
    with Supervisor(root, flags.seed) as supervisor:
        for name, index in _inputs(flags):
            result = supervisor.run(name, index)
            results[name].append(result)
            if result.status == "finding":
                kinds[kind_of(result.detail)].append(f"{name}:{index}")
            if (result.status == "finding" and len(kinds[kind_of(result.detail)]) <= SHOWN_PER_KIND) or flags.only:
                print(f"{result.status}  {name}:{index}  {result.detail}\n  files: {result.folder}", flush=True)
    seconds = time.monotonic() - started_at
    _print_table(results)
    for kind, names in kinds.items():
        print(f"{len(names):>5} x {kind[:160]}: {', '.join(names[:4])}")
    findings = sum(result.status == "finding" for group in results.values() for result in group)
    total = sum(map(len, results.values()))
    print(f"{total} inputs, seed {flags.seed}, {seconds:.0f} s: {findings} findings")
    return 1 if findings else 0


def _parse_flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "tests.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=2000, help="number of inputs over all readers")
    parser.add_argument("--seed", type=int, default=0, help="seed of all inputs")
    parser.add_argument("--only", metavar="READER[:INDEX]", help=f"one reader or input; readers: {', '.join(READERS)}")
    parser.add_argument("--folder", type=Path, help="folder of the inputs; defaults to a new temporary folder")
    flags = parser.parse_args()
    if flags.only and flags.only.partition(":")[0] not in READERS:
        parser.error(f"--only is {flags.only}; expected one of {', '.join(READERS)}")
    return flags


def _inputs(flags: argparse.Namespace) -> list[tuple[str, int]]:
    """Returns the inputs: each reader's share in proportion to its weight, grouped by process."""
    if flags.only:
        name, _, index = flags.only.partition(":")
        return [(name, int(index))] if index else [(name, number) for number in range(flags.inputs)]
    total = sum(reader.weight for reader in READERS.values())
    counts = {name: max(1, round(flags.inputs * reader.weight / total)) for name, reader in READERS.items()}
    counts[max(counts, key=lambda name: counts[name])] += flags.inputs - sum(counts.values())
    inputs = [(name, index) for name, count in counts.items() for index in range(count)]
    Random(flags.seed).shuffle(inputs)  # an interrupted run has covered every reader
    return sorted(inputs, key=lambda entry: READERS[entry[0]].group, reverse=True)


def _print_table(results: dict[str, list[Result]]) -> None:
    print(f"{'reader':<18} {'inputs':>7} {'accepted':>9} {'rejected':>9} {'findings':>9} {'mean ms':>8} {'max s':>6}")
    for name, group in results.items():
        counts = Counter(result.status for result in group)
        seconds = [result.seconds for result in group]
        print(
            f"{name:<18} {len(group):>7} {counts['accepted']:>9} {counts['rejected']:>9} {counts['finding']:>9} "
            f"{1000 * sum(seconds) / len(seconds):>8.1f} {max(seconds):>6.2f}"
        )


if __name__ == "__main__":
    sys.exit(main())
