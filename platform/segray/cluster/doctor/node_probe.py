"""Functions that run on the probed nodes, in actors that reserve no CPU. torch and the data package load on demand."""

import os
import platform
import shutil
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import ray

from segray.cluster.ray_internals import ray_session_dir

SHARED_MEMORY = Path("/dev/shm")
NVIDIA_GPUS = Path("/proc/driver/nvidia/gpus")
LIBRARIES = ("ray", "torch", "segray", "numpy", "pyarrow")
VISIBILITY_TIMEOUT_S = 10.0  # shared file systems may show a new file this late
ALL_REDUCE_TIMEOUT_S = 10.0
ALL_REDUCE_ROUNDS = 3


@dataclass(frozen=True)
class NodeReport:
    """Report of a node.

    Attributes:
        versions: versions of Python and of the libraries that must be equal on all nodes.
        shared_memory_bytes: capacity of /dev/shm, or None if it does not exist.
        temp_free_bytes: free space on the disk of Ray's session files.
        num_gpus: number of GPUs that the NVIDIA driver reports.
        results_error: error of the results folder on the node, or an empty string.
        dataset_error: error of the dataset on the node, or an empty string.
    """

    versions: dict[str, str]
    shared_memory_bytes: int | None
    temp_free_bytes: int
    num_gpus: int = 0
    results_error: str = ""
    dataset_error: str = ""


def report_node(results: str, marker: str, root: str | None, digest: str | None) -> NodeReport:
    """Returns the report of this node.

    Args:
        results: results folder, which every node must see.
        marker: name, and also content, of a file that the driver created in the results folder.
        root: root of the dataset, or None to skip the dataset.
        digest: digest of the dataset as seen by the driver.
    """
    return NodeReport(
        versions=probe_versions(),
        shared_memory_bytes=_disk_total_bytes(SHARED_MEMORY),
        temp_free_bytes=disk_free_bytes(ray_session_dir()) or 0,
        num_gpus=len(list(NVIDIA_GPUS.iterdir())) if NVIDIA_GPUS.exists() else 0,
        results_error=probe_results_dir(Path(results), marker),
        dataset_error="" if root is None else probe_dataset(root, digest),
    )


def probe_versions() -> dict[str, str]:
    """Returns the versions of Python and the libraries that must be equal on all nodes."""
    versions = {"python": ".".join(platform.python_version_tuple()[:2])}  # Ray itself checks the patch version
    for library in LIBRARIES:
        with suppress(PackageNotFoundError):
            versions[library] = version(library)
    return versions


def probe_results_dir(results: Path, marker: str) -> str:
    """Waits until the driver's marker file is visible, and writes a file. Returns the error, or an empty string."""
    deadline = time.monotonic() + VISIBILITY_TIMEOUT_S
    while not _has_content(results / marker, marker):
        if time.monotonic() > deadline:
            return f"{results} is not the folder of the driver" if results.is_dir() else f"{results} does not exist"
        time.sleep(0.1)
    own_file = results / f"{marker}-{os.getpid()}-{socket.gethostname()}"
    try:
        own_file.write_text(marker)
        own_file.unlink()
    except OSError as error:
        return f"{results} is not writable ({error.strerror})"
    return ""


def _has_content(file: Path, content: str) -> bool:
    try:
        return file.read_text() == content
    except OSError:
        return False


def probe_dataset(root: str, digest: str | None) -> str:
    """Returns the error of the dataset (unreadable, or different from the driver's), or an empty string."""
    from segray.core.errors import DataError  # noqa: PLC0415
    from segray.data.manifest import read_manifest  # noqa: PLC0415
    from segray.data.reader import SplitReader  # noqa: PLC0415 takes a second to import; the driver does not need it
    from segray.data.storage import strip_credentials  # noqa: PLC0415

    try:
        manifest = read_manifest(root)
        if digest not in (None, manifest.digest):
            return f"{strip_credentials(root)} is not the dataset of the driver (digest {manifest.digest[:12]})"
        for split in manifest.splits.values():
            if split.rows:
                SplitReader(root, split).read([0])
    except DataError as error:
        return str(error)
    return ""


def path_exists(path: Path) -> bool:
    """Returns True if a path exists, and False if that cannot be determined."""
    try:
        return path.exists()
    except OSError:
        return False


def disk_free_bytes(folder: str) -> int | None:
    """Returns the number of free bytes on the disk of a folder, or None if the folder is not accessible."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def _disk_total_bytes(folder: Path) -> int | None:
    try:
        return shutil.disk_usage(folder).total
    except OSError:
        return None


def find_free_port() -> int:
    """Returns a free port of this node."""
    with socket.create_server(("", 0)) as server:
        return int(server.getsockname()[1])


def import_torch() -> None:
    """Imports torch, so that slow imports do not delay the rendezvous of the all-reduce."""
    import torch.distributed  # noqa: F401, PLC0415


def time_all_reduce(backend: str, init_method: str, node_ids: list[str], count: int) -> float:
    """Returns the duration in seconds of an all-reduce of `count` float32 values: the minimum of several rounds.

    DDP makes such an all-reduce with the gradients of every step. The duration excludes the rendezvous.

    Args:
        backend: backend of torch.distributed, "gloo" or "nccl".
        init_method: `tcp://host:port` of the first node.
        node_ids: Ray's ids of the nodes, in the order of their ranks.
        count: number of values.

    Raises:
        RuntimeError: the nodes cannot connect, or a connection is lost.
    """
    import torch  # noqa: PLC0415
    import torch.distributed as dist  # noqa: PLC0415

    dist.init_process_group(
        backend,
        init_method=init_method,
        rank=node_ids.index(ray.get_runtime_context().get_node_id()),
        world_size=len(node_ids),
        timeout=timedelta(seconds=ALL_REDUCE_TIMEOUT_S),
    )
    try:
        values = torch.ones(count, device="cuda" if backend == "nccl" else "cpu")
        durations = []
        for _ in range(1 + ALL_REDUCE_ROUNDS):  # the first round is a warm-up
            start = time.perf_counter()
            dist.all_reduce(values)
            values[0].item()  # waits for the device
            durations.append(time.perf_counter() - start)
        return min(durations[1:])
    finally:
        dist.destroy_process_group()
