"""The peak memory of a train step, each contender alone in a fresh process."""

import gc
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from segray.benchmark.contenders import Case, Contender, Entry, contender

STATUS, REFERENCES = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"
STEPS = 2  # the optimiser's state is there from the second on


def can_measure(device: torch.device) -> bool:
    """Returns whether this system tells a process's peak: Linux does, and so does CUDA."""
    return device.type == "cuda" or REFERENCES.exists()


def peak_bytes(entry: Entry, case: Case, threads: int) -> int:
    """Returns the most bytes held at once in a train step: parameters, gradients, optimiser state, activations.

    On the CPU it is what the system says of the process, so that everything counts which any library allocates;
    on CUDA it is what torch's allocator says.
    """
    fresh = get_context("spawn")  # a fork would inherit a heap, and locks of threads it has not
    with ProcessPoolExecutor(1, mp_context=fresh) as pool:
        return pool.submit(_peak, entry, case, threads).result()


def _peak(entry: Entry, case: Case, threads: int) -> int:
    torch.set_num_threads(threads)
    measured = contender(entry, case)
    gc.collect()
    if case.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        _steps(measured)
        return torch.cuda.max_memory_allocated()
    before = _status("VmRSS")
    REFERENCES.write_text(RESET_PEAK)
    _steps(measured)
    parameters = sum(parameter.nbytes for parameter in measured.model.parameters())
    return _status("VmHWM") - before + parameters


def _steps(measured: Contender) -> None:
    optimiser = measured.optimiser()
    for _ in range(STEPS):
        measured.train_step(optimiser)


def _status(field: str) -> int:
    """Returns a field of the process's status in bytes."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(lines[field].split()[0]) * 1024
