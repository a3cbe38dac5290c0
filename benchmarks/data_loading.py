"""Benchmark of data loading: throughput, start-up time and memory of segray, a DataLoader and a bare loop."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection

import torch

from benchmarks import machine
from benchmarks.interleave import BenchmarkReport, Row, rate_row, time_row
from benchmarks.loaders import LOADERS, LoaderTask, PassTiming, serve_turns
from benchmarks.memory_monitor import PeakMemory, is_supported
from segray.core.numbers import MIB

OURS, DATALOADER, BARE_LOOP = LOADERS


def run_benchmark(
    task: LoaderTask, tenfold: LoaderTask | None, turns: int, log: Callable[[str], None]
) -> BenchmarkReport:
    """Compares segray with the peers in alternating turns.

    Args:
        task: task of one turn.
        tenfold: the same task with ten times the rows, to measure the growth of memory; `None` skips it.
        turns: number of timed turns of each candidate, after one warm-up turn.
        log: callback that receives progress messages.
    """
    log(f"crop {task.crop}: {', '.join(LOADERS)}, {turns} turns per candidate ...")
    with _children(task) as children:
        rounds = [{name: _turn(pipe, number)[0] for name, pipe in children.items()} for number in range(turns + 1)]
    passes = {name: [timings[name] for timings in rounds[1:]] for name in LOADERS}
    rows = _times(task, passes) + (_memory(task, tenfold, log) if is_supported() else [])
    return BenchmarkReport(machine.describe_machine(torch.device("cpu")), describe(task), rows)


def describe(task: LoaderTask) -> dict[str, str | int]:
    """Returns a readable description of one turn."""
    return {
        "rows": task.source.split.rows,
        "mean_size": f"{task.source.split.mean_width:.0f}x{task.source.split.mean_height:.0f}",
        "row_bytes": round(task.source.row_bytes),
        "crop": task.crop,
        "batch": task.batch,
        "images_a_turn": task.batch * task.batches,
        "cores": task.cores,
    }


def _times(task: LoaderTask, passes: dict[str, list[PassTiming]]) -> list[Row]:
    images = task.batch * task.batches
    rates = {name: [images / timing.total_s for timing in series] for name, series in passes.items()}
    first = {name: [timing.first_s for timing in series] for name, series in passes.items()}
    return [
        *(rate_row("ingest_images", peer, rates[OURS], rates[peer], "images/s") for peer in (DATALOADER, BARE_LOOP)),
        time_row("ingest_first_batch", DATALOADER, first[OURS], first[DATALOADER], "s"),
    ]


def _memory(task: LoaderTask, tenfold: LoaderTask | None, log: Callable[[str], None]) -> list[Row]:
    """Returns the peak memory of a turn, compared with the DataLoader's and with that for a tenth of the rows."""
    log("peak memory, in a separate turn per candidate ...")
    ours, theirs = _peak(OURS, task), _peak(DATALOADER, task)
    rows = [time_row("ingest_memory", DATALOADER, [ours.memory / MIB], [theirs.memory / MIB], "MiB")]
    if tenfold is None:
        return rows
    log(f"the same with {tenfold.source.split.rows} rows ...")
    larger, peer = _peak(OURS, tenfold), "a tenth of the rows"
    rows.append(time_row("ingest_memory_tenfold", peer, [larger.memory / MIB], [ours.memory / MIB], "MiB"))
    if larger.store and ours.store:  # small tables are not stored in the object store
        rows.append(time_row("ingest_store_tenfold", peer, [larger.store / MIB], [ours.store / MIB], "MiB"))
    return rows


def _peak(name: str, task: LoaderTask) -> PeakMemory:
    with ExitStack() as stack:
        pipe = stack.enter_context(_child(name, task))
        return _turn(pipe, 0, monitored=True)[1]


@contextmanager
def _children(task: LoaderTask) -> Iterator[dict[str, Connection]]:
    with ExitStack() as stack:
        yield {name: stack.enter_context(_child(name, task)) for name in LOADERS}


@contextmanager
def _child(name: str, task: LoaderTask) -> Iterator[Connection]:
    """Starts a candidate in a separate process and ends the process when the block exits."""
    context = get_context("spawn")
    ours, child_end = context.Pipe()
    process = context.Process(target=serve_turns, args=(name, task, child_end))
    process.start()
    child_end.close()
    try:
        ours.recv()
        yield ours
        ours.send(None)
        process.join()
    finally:
        process.kill()


def _turn(pipe: Connection, number: int, monitored: bool = False) -> tuple[PassTiming, PeakMemory]:
    pipe.send((number, monitored))
    result: tuple[PassTiming, PeakMemory] = pipe.recv()
    return result
