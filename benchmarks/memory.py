"""Peak memory of a training step, measured for each implementation in a new process."""

import gc
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.peers import Case, Implementation, ImplementationSpec, build_implementation

STATUS, REFERENCES = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"
STEPS = 2  # the optimiser state exists from the second step on


def can_measure(device: torch.device) -> bool:
    """Returns True if the peak memory can be measured: on Linux and on CUDA."""
    return device.type == "cuda" or REFERENCES.exists()


def peak_bytes(entry: ImplementationSpec, case: Case, threads: int) -> int:
    """Returns the peak memory in bytes of a training step: parameters, gradients, optimiser state and activations.

    On a CPU, the system reports the memory of the process, which includes allocations by all libraries. On CUDA,
    torch's allocator reports it.
    """
    with fresh_process() as pool:
        return pool.submit(_peak, entry, case, threads).result()


def fresh_process() -> ProcessPoolExecutor:
    """Returns an executor with one spawned process.

    A forked process would inherit the heap, and the locks of threads that it does not have.
    """
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def _peak(entry: ImplementationSpec, case: Case, threads: int) -> int:
    torch.set_num_threads(threads)
    measured = build_implementation(entry, case)
    parameters = sum(parameter.nbytes for parameter in measured.model.parameters())
    added = peak_added_bytes(lambda: _steps(measured), torch.device(case.device))
    return added if case.device == "cuda" else added + parameters


def peak_added_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Returns the peak memory in bytes during a call.

    On CUDA, the value is torch's total allocation. On a CPU, it is the increase over the current memory of the process.
    """
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
    """Returns a field of the process status in bytes."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(lines[field].split()[0]) * 1024
