"""The peak memory of a train step, each contender alone in a fresh process."""

import gc
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.peers import Case, Implementation, ImplementationSpec, build_implementation

STATUS, REFERENCES = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"
STEPS = 2  # the optimiser's state is there from the second on


def can_measure(device: torch.device) -> bool:
    """Returns whether this system tells a process's peak: Linux does, and so does CUDA."""
    return device.type == "cuda" or REFERENCES.exists()


def peak_bytes(entry: ImplementationSpec, case: Case, threads: int) -> int:
    """Returns the most bytes held at once in a train step: parameters, gradients, optimiser state, activations.

    On the CPU it is what the system says of the process, so that everything counts which any library allocates;
    on CUDA it is what torch's allocator says.
    """
    with fresh_process() as pool:
        return pool.submit(_peak, entry, case, threads).result()


def fresh_process() -> ProcessPoolExecutor:
    """Returns a fresh process; a fork would inherit a heap, and locks of threads it has not."""
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def _peak(entry: ImplementationSpec, case: Case, threads: int) -> int:
    torch.set_num_threads(threads)
    measured = build_implementation(entry, case)
    parameters = sum(parameter.nbytes for parameter in measured.model.parameters())
    added = peak_added_bytes(lambda: _steps(measured), torch.device(case.device))
    return added if case.device == "cuda" else added + parameters


def peak_added_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Returns the most bytes held during some work: on CUDA by torch in all, else by this process beyond now."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated()
    before = _status("VmRSS")
    REFERENCES.write_text(RESET_PEAK)
    work()
    return _status("VmHWM") - before


def _steps(measured: Implementation) -> None:
    optimiser = measured.optimiser()
    for _ in range(STEPS):
        measured.train_step(optimiser)


def _status(field: str) -> int:
    """Returns a field of the process's status in bytes."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(lines[field].split()[0]) * 1024
