"""Benchmark of data loading: throughput, start-up time and memory of segray, a DataLoader and a bare loop."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection

import torch

from benchmarks import machine
from benchmarks.interleave import BenchmarkReport, Row, rate_row, time_row
from benchmarks.loaders import CONTENDERS, LoaderTask, PassTiming, serve_turns
from benchmarks.memory_monitor import PeakMemory, is_supported

OURS, DATALOADER, BARE_LOOP = CONTENDERS
MIB = 2**20


def run_benchmark(
    load: LoaderTask, tenfold: LoaderTask | None, turns: int, say: Callable[[str], None]
) -> BenchmarkReport:
    """Compares segray with the peers in alternating turns.

    Args:
        load: task of one turn.
        tenfold: the same task with ten times the rows, to measure the growth of memory; `None` skips it.
        turns: number of timed turns of each candidate, after one warm-up turn.
        say: callback that receives progress messages.
    """
    say(f"crop {load.crop}: {', '.join(CONTENDERS)}, {turns} turns each ...")
    with _children(load) as children:
        rounds = [{name: _turn(pipe, number)[0] for name, pipe in children.items()} for number in range(turns + 1)]
    passes = {name: [one[name] for one in rounds[1:]] for name in CONTENDERS}
    rows = _times(load, passes) + (_memory(load, tenfold, say) if is_supported() else [])
    return BenchmarkReport(machine.describe_machine(torch.device("cpu")), describe(load), rows)


def describe(load: LoaderTask) -> dict[str, str | int]:
    """Returns a readable description of one turn."""
    return {
        "rows": load.source.split.rows,
        "mean_size": f"{load.source.split.mean_width:.0f}x{load.source.split.mean_height:.0f}",
        "row_bytes": round(load.source.row_bytes),
        "crop": load.crop,
        "batch": load.batch,
        "images_a_turn": load.batch * load.batches,
        "cores": load.cores,
    }


def _times(load: LoaderTask, passes: dict[str, list[PassTiming]]) -> list[Row]:
    images = load.batch * load.batches
    rates = {name: [images / one.all_s for one in series] for name, series in passes.items()}
    first = {name: [one.first_s for one in series] for name, series in passes.items()}
    return [
        *(rate_row("ingest_images", peer, rates[OURS], rates[peer], "images/s") for peer in (DATALOADER, BARE_LOOP)),
        time_row("ingest_first_batch", DATALOADER, first[OURS], first[DATALOADER], "s"),
    ]


def _memory(load: LoaderTask, tenfold: LoaderTask | None, say: Callable[[str], None]) -> list[Row]:
    """Returns the peak memory of a turn, compared with the DataLoader's and with that for a tenth of the rows."""
    say("peak memory, in a turn of its own each ...")
    ours, theirs = _peak(OURS, load), _peak(DATALOADER, load)
    rows = [time_row("ingest_memory", DATALOADER, [ours.memory / MIB], [theirs.memory / MIB], "MiB")]
    if tenfold is None:
        return rows
    say(f"the same with {tenfold.source.split.rows} rows ...")
    larger, peer = _peak(OURS, tenfold), "a tenth of the rows"
    rows.append(time_row("ingest_memory_tenfold", peer, [larger.memory / MIB], [ours.memory / MIB], "MiB"))
    if larger.store and ours.store:  # small tables are not stored in the object store
        rows.append(time_row("ingest_store_tenfold", peer, [larger.store / MIB], [ours.store / MIB], "MiB"))
    return rows


def _peak(name: str, load: LoaderTask) -> PeakMemory:
    with ExitStack() as stack:
        pipe = stack.enter_context(_child(name, load))
        return _turn(pipe, 0, watching=True)[1]


@contextmanager
def _children(load: LoaderTask) -> Iterator[dict[str, Connection]]:
    with ExitStack() as stack:
        yield {name: stack.enter_context(_child(name, load)) for name in CONTENDERS}


@contextmanager
def _child(name: str, load: LoaderTask) -> Iterator[Connection]:
    """Starts a candidate in a separate process and ends the process when the block exits."""
    fresh = get_context("spawn")
    ours, theirs = fresh.Pipe()
    process = fresh.Process(target=serve_turns, args=(name, load, theirs))
    process.start()
    theirs.close()
    try:
        ours.recv()
        yield ours
        ours.send(None)
        process.join()
    finally:
        process.kill()


def _turn(pipe: Connection, number: int, watching: bool = False) -> tuple[PassTiming, PeakMemory]:
    pipe.send((number, watching))
    taken: tuple[PassTiming, PeakMemory] = pipe.recv()
    return taken
