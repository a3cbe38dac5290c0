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


def peak_bytes(spec: ImplementationSpec, case: Case, threads: int) -> int:
    """Returns the peak memory in bytes of a training step: parameters, gradients, optimiser state and activations.

    On a CPU, the system reports the memory of the process, which includes allocations by all libraries. On CUDA,
    torch's allocator reports it.
    """
    with fresh_process() as pool:
        return pool.submit(_peak, spec, case, threads).result()


def fresh_process() -> ProcessPoolExecutor:
    """Returns an executor with one spawned process.

    A forked process would inherit the heap, and the locks of threads that it does not have.
    """
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def _peak(spec: ImplementationSpec, case: Case, threads: int) -> int:
    torch.set_num_threads(threads)
    implementation = build_implementation(spec, case)
    parameters = sum(parameter.nbytes for parameter in implementation.model.parameters())
    added = peak_added_bytes(lambda: _train_steps(implementation), torch.device(case.device))
    return added if case.device == "cuda" else added + parameters


def peak_added_bytes(function: Callable[[], object], device: torch.device) -> int:
    """Returns the peak memory in bytes during a call.

    On CUDA, the value is torch's total allocation. On a CPU, it is the increase over the current memory of the process.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        function()
        return torch.cuda.max_memory_allocated()
    before = _status_bytes("VmRSS")
    REFERENCES.write_text(RESET_PEAK)
    function()
    return _status_bytes("VmHWM") - before


def _train_steps(implementation: Implementation) -> None:
    optimiser = implementation.optimiser()
    for _ in range(STEPS):
        implementation.train_step(optimiser)


def _status_bytes(field: str) -> int:
    """Returns a field of the process status in bytes."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(lines[field].split()[0]) * 1024
