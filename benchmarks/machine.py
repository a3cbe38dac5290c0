"""Description of the machine of a measurement and its matrix multiplication rate."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from segray.inference.timing import time_call

PACKAGES = ("segray", "torch", "transformers")
MATRIX = {"cpu": 2048, "cuda": 8192}
NUM_TRIALS = 5


def describe_machine(device: torch.device) -> dict[str, str | int]:
    """Returns the hardware of the machine and the versions of the software."""
    description: dict[str, str | int] = {
        "cpu": _cpu(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
    }
    if device.type == "cuda":
        description["gpu"] = torch.cuda.get_device_name(device)
        description["cuda"] = str(torch.version.cuda)
    return description | {name: version_ for name in PACKAGES if (version_ := _version(name))}


def _cpu() -> str:
    """Returns the name of the processor, if the system reports it."""
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        for line in listing.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Returns the multiply-accumulates per second of the fastest of several square matrix products."""
    size = MATRIX.get(device.type, 2048)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    left @ right
    return size**3 / min(time_call(lambda: left @ right, device) for _ in range(NUM_TRIALS))
