"""Resource usage of a worker, for the reports."""

import psutil
import torch

from segray.core.numbers import GIB


class SystemUsage:
    """Measures the resource usage of this process.

    CPU usage is in percent of one core since the last call. Memory is in GiB. On a GPU, memory and utilisation of the
    device are also measured.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._process = psutil.Process()
        self._process.cpu_percent()  # the first call only sets the reference time

    def __call__(self) -> dict[str, float]:
        """Returns the current values by name."""
        memory = self._process.memory_info().rss / GIB
        usage = {"cpu_percent": self._process.cpu_percent(), "memory_gib": memory}
        return usage | (_gpu_usage(self._device) if self._device.type == "cuda" else {})


def _gpu_usage(device: torch.device) -> dict[str, float]:
    free, total = torch.cuda.mem_get_info(device)
    usage = {"gpu_memory_gib": (total - free) / GIB}
    try:
        return usage | {"gpu_percent": float(torch.cuda.utilization(device))}
    except ModuleNotFoundError:  # nvidia-ml-py is not installed
        return usage
