"""Probe of a node, which runs there in an actor that reserves no CPU."""

import os
import platform
import shutil
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import ray

SHARED_MEMORY = Path("/dev/shm")
NVIDIA = Path("/proc/driver/nvidia/gpus")
LIBRARIES = ("ray", "torch", "segray", "numpy", "pyarrow")
VISIBILITY_TIMEOUT_S = 3.0  # network file systems may show a new file this late


@dataclass(frozen=True)
class ProbeRequest:
    """Request to probe a node.

    Attributes:
        results: results folder, which every node must see.
        marker_file: name, and also content, of a file that the driver created in the results folder.
        root: root of the dataset, or None to skip the dataset.
        digest: digest of the dataset as seen by the driver.
    """

    results: str
    marker_file: str
    root: str | None
    digest: str | None


@dataclass(frozen=True)
class NodeReport:
    """Report of a node.

    Attributes:
        versions: versions of Python and of the libraries that must be equal on all nodes.
        shared_memory: capacity of /dev/shm in bytes, or None if it does not exist.
        free: free bytes on the disk of the results folder, or None if the folder does not exist.
        temporary: free bytes on the disk of Ray's session files.
        gpus: number of GPUs that the NVIDIA driver reports.
        storage: error of the results folder on the node, or an empty string.
        dataset: error of the dataset on the node, or an empty string.
    """

    versions: dict[str, str]
    shared_memory: int | None
    free: int | None
    temporary: int
    gpus: int = 0
    storage: str = ""
    dataset: str = ""


def probe_versions() -> dict[str, str]:
    """Returns the versions of Python and the libraries that must be equal on all nodes."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}  # Ray itself checks the patch version
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


class NodeProbe:
    """Probe of the node on which it runs."""

    def report(self, question: ProbeRequest) -> NodeReport:
        """Returns the report of the node."""
        return NodeReport(
            versions=probe_versions(),
            shared_memory=disk_total_bytes(SHARED_MEMORY),
            free=disk_free_bytes(question.results),
            temporary=disk_free_bytes(ray_session_dir()) or 0,
            gpus=len(list(NVIDIA.iterdir())) if NVIDIA.exists() else 0,
            storage=probe_results_dir(question, f"{question.marker_file}-{os.getpid()}-{socket.gethostname()}"),
            dataset=probe_dataset(question),
        )

    def time_s(self) -> float:
        """Returns the time of the node in seconds since the epoch."""
        return time.time()

    def import_torch(self) -> None:
        """Imports torch, so that slow imports do not delay the rendezvous."""
        from segray.cluster.doctor import bandwidth  # noqa: F401, PLC0415 only this needs torch

    def free_port(self) -> int:
        """Returns a free port."""
        with socket.create_server(("", 0)) as found:
            return int(found.getsockname()[1])

    def time_all_reduce(self, backend: str, address: str, rank: int, world: int, count: int) -> float:
        """Returns the duration in seconds of an all-reduce of `count` float32 values, without the rendezvous."""
        from segray.cluster.doctor.bandwidth import time_all_reduce  # noqa: PLC0415 only this needs torch

        return time_all_reduce(backend, address, rank, world, count)


def probe_results_dir(question: ProbeRequest, ours: str) -> str:
    """Checks that the driver's marker file is visible and that the results folder is writable.

    Args:
        question: request with the folder and the marker file.
        ours: name of the file to write.

    Returns:
        The error, or an empty string.
    """
    folder = Path(question.results)
    until = time.monotonic() + VISIBILITY_TIMEOUT_S
    while not _has(folder / question.marker_file, question.marker_file):
        if time.monotonic() > until:
            return f"{folder} is another folder there" if folder.is_dir() else f"{folder} is not there"
        time.sleep(0.1)
    try:
        (folder / ours).write_text(question.marker_file)
        (folder / ours).unlink()
    except OSError as error:
        return f"{folder} cannot be written to there ({error.strerror})"
    return ""


def _has(file: Path, content: str) -> bool:
    try:
        return file.read_text() == content
    except OSError:
        return False


def probe_dataset(question: ProbeRequest) -> str:
    """Returns the error of the dataset (unreadable, or different from the driver's), or an empty string."""
    if question.root is None:
        return ""
    from segray.core.errors import DataError  # noqa: PLC0415
    from segray.data.manifest import read_manifest  # noqa: PLC0415
    from segray.data.reader import SplitReader  # noqa: PLC0415 takes a second to import; the driver does not need it
    from segray.data.storage import strip_credentials  # noqa: PLC0415

    try:
        manifest = read_manifest(question.root)
        if question.digest not in (None, manifest.digest):
            return f"{strip_credentials(question.root)} is another dataset there, digest {manifest.digest[:12]}"
        for split in manifest.splits.values():
            if split.rows:
                SplitReader(question.root, split).read([0])
    except DataError as error:
        return str(error)
    return ""


def ray_session_dir() -> str:
    """Returns the folder of Ray's session files on the node of this process."""
    return str(ray._private.worker._global_node.get_session_dir_path())


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


def disk_total_bytes(folder: Path) -> int | None:
    """Returns the capacity in bytes of the disk of a folder, or None if the folder is not accessible."""
    try:
        return shutil.disk_usage(folder).total
    except OSError:
        return None
