"""Fast subset of the doctor checks, made before each run and sweep."""

from collections.abc import Callable
from pathlib import Path

from segray.cluster.doctor.checks import CheckResult, Severity, check_disk, check_stop_timeout, check_tracking
from segray.cluster.doctor.node_checks import check_run_requirements, results_not_writable
from segray.cluster.doctor.node_probe import disk_free_bytes, path_exists
from segray.cluster.doctor.probes import ResultsNotWritableError, node_probes, report_nodes
from segray.cluster.nodes import is_multi_host, list_nodes
from segray.config import Config, paths
from segray.core.classes import Classes
from segray.core.errors import ClusterError
from segray.data.manifest import Manifest
from segray.training import footprint


def preflight(
    config: Config, uri: str, manifest: Manifest, say: Callable[[str], None], is_resumed: bool = False
) -> None:
    """Checks that the run or sweep can work on this cluster, and prints warnings.

    On a single-node cluster no node is probed, because this process has already checked the data and the results
    folder.

    Args:
        config: settings of the run or sweep, with resolved paths.
        uri: MLflow store.
        manifest: manifest of the dataset.
        say: callback that receives a line for each warning.
        is_resumed: `True` if the run is resumed, so that most of its checkpoints already exist.

    Raises:
        ClusterError: a check failed; the message lists all failed checks.
    """
    results = [
        check_tracking(paths.redact(uri), is_multi_host(), ""),
        preflight_stop_timeout(),
        check_disk_space(config, manifest.classes, is_resumed),
    ]
    nodes = list_nodes()
    if len(nodes) > 1:
        try:
            with node_probes(nodes) as probes:
                replies = report_nodes(probes, config, manifest)
            # A node that does not respond may be joining or leaving the cluster.
            results += check_run_requirements(config, manifest, replies, unresponsive=Severity.WARN)
        except ResultsNotWritableError as error:
            results.append(results_not_writable(error))
    failed = [result for result in results if result.level is Severity.FAIL]
    if failed:
        raise ClusterError("\n".join(str(result) for result in failed) + ".")
    for result in results:
        if result.level is Severity.WARN:
            say(f"{result}.")


def check_disk_space(config: Config, classes: Classes, is_resumed: bool = False) -> CheckResult:
    """Checks the disk space for the checkpoints of a run or of the trials of a sweep.

    For a resumed run, only the space for the next checkpoints is required.
    """
    results = Path(config.results)
    existing = next(folder for folder in (results, *results.parents) if path_exists(folder))
    num_kept = footprint.ALWAYS_KEPT if is_resumed else footprint.num_kept_checkpoints(config)
    checkpoint = footprint.checkpoint_bytes(config, classes)
    return check_disk(config.results, disk_free_bytes(str(existing)), checkpoint, num_kept)


def preflight_stop_timeout() -> CheckResult:
    """Checks that `ray job stop` leaves this process enough time to shut down in order."""
    return check_stop_timeout(paths.job_stop_timeout_s())
