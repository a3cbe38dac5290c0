"""What a node says of itself; runs there, in an actor that reserves nothing."""

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
VISIBILITY_TIMEOUT_S = 3.0  # a network file system may be as late as that


@dataclass(frozen=True)
class ProbeRequest:
    """What a node is asked.

    Attributes:
        results: folder that every node is to see.
        marker_file: name, and content, of a file that the asker put there.
        root: of the dataset; none asks nothing of it.
        digest: of the dataset as the asker sees it.
    """

    results: str
    marker_file: str
    root: str | None
    digest: str | None


@dataclass(frozen=True)
class NodeReport:
    """What a node says.

    Attributes:
        versions: of Python and the libraries that have to be the same everywhere.
        shared_memory: bytes that /dev/shm can hold; none where there is no such thing.
        free: bytes left on the disk of the results, none if the folder is not there.
        temporary: bytes left on the disk of Ray's own files.
        gpus: that the driver shows.
        storage: what is wrong with the results' folder, seen from there.
        dataset: what is wrong with the dataset, seen from there.
    """

    versions: dict[str, str]
    shared_memory: int | None
    free: int | None
    temporary: int
    gpus: int = 0
    storage: str = ""
    dataset: str = ""


def probe_versions() -> dict[str, str]:
    """Returns the versions that have to be the same everywhere."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}  # Ray itself looks at the rest
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


class NodeProbe:
    """Looks at the node it runs on."""

    def report(self, question: ProbeRequest) -> NodeReport:
        """Returns what there is to say."""
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
        """Returns its time, in seconds since the epoch."""
        return time.time()

    def import_torch(self) -> None:
        """Imports what a sum needs: nodes take their time with that, and meet behind it."""
        from segray.cluster.doctor import bandwidth  # noqa: F401, PLC0415 torch is needed nowhere else

    def free_port(self) -> int:
        """Returns a port that is free."""
        with socket.create_server(("", 0)) as found:
            return int(found.getsockname()[1])

    def time_all_reduce(self, backend: str, address: str, rank: int, world: int, count: int) -> float:
        """Returns the seconds that the sum of `count` float32 over all nodes takes, once they have met."""
        from segray.cluster.doctor.bandwidth import time_all_reduce  # noqa: PLC0415 torch is needed nowhere else

        return time_all_reduce(backend, address, rank, world, count)


def probe_results_dir(question: ProbeRequest, ours: str) -> str:
    """Returns what is wrong with the results' folder: the asker's file is not seen, or none can be written."""
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
    """Returns what is wrong with the dataset: it cannot be read, or is another."""
    if question.root is None:
        return ""
    from segray.core.errors import DataError  # noqa: PLC0415
    from segray.data.manifest import read_manifest  # noqa: PLC0415
    from segray.data.reader import SplitReader  # noqa: PLC0415 it takes a second, which the asker need not wait for
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
    """Returns the folder of Ray's own files, of the node this process is on."""
    return str(ray._private.worker._global_node.get_session_dir_path())


def path_exists(path: Path) -> bool:
    """Returns whether a path is there, as far as this user may know."""
    try:
        return path.exists()
    except OSError:
        return False


def disk_free_bytes(folder: str) -> int | None:
    """Returns what is left on the disk of a folder, none if there is no such folder."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def disk_total_bytes(folder: Path) -> int | None:
    """Returns what the disk of a folder holds at most, none if there is no such folder."""
    try:
        return shutil.disk_usage(folder).total
    except OSError:
        return None
