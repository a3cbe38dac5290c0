"""Fast subset of the doctor checks, made before each run and sweep."""

from collections.abc import Callable
from pathlib import Path

from segray.cluster.doctor import checks, node_probe
from segray.cluster.doctor.probes import ResultsNotWritableError, check_nodes, not_writable_result, probing_nodes
from segray.cluster.doctor.results import CheckResult, Severity
from segray.cluster.nodes import is_multi_host, list_nodes
from segray.config import Config, paths
from segray.core.classes import Classes
from segray.core.errors import ClusterError
from segray.data.manifest import Manifest
from segray.training import footprint


def preflight(config: Config, uri: str, manifest: Manifest, say: Callable[[str], None], goes_on: bool = False) -> None:
    """Checks that the run or sweep can work on this cluster, and prints warnings.

    On a single-node cluster no node is probed, because this process has already checked the data and the results
    folder.

    Args:
        config: settings of the run or sweep, with resolved paths.
        uri: MLflow store.
        manifest: manifest of the dataset.
        say: callback that receives a line for each warning.
        goes_on: `True` if the run is resumed, so that most of its checkpoints already exist.

    Raises:
        ClusterError: a check failed; the message lists all failed checks.
    """
    found = [
        checks.check_tracking(paths.redact(uri), is_multi_host(), ""),
        preflight_stop_timeout(),
        check_disk_space(config, manifest.classes, goes_on),
    ]
    members = list_nodes()
    if len(members) > 1:
        try:
            with probing_nodes(config, manifest, members) as asked:
                found += check_nodes(config, asked.wait(), silent=Severity.WARN)  # it may be joining or leaving
        except ResultsNotWritableError as error:
            found.append(not_writable_result(error))
    wrong = [verdict for verdict in found if verdict.level is Severity.FAIL]
    if wrong:
        raise ClusterError("\n".join(str(verdict) for verdict in wrong) + ".")
    for verdict in found:
        if verdict.level is Severity.WARN:
            say(f"{verdict}.")


def check_disk_space(config: Config, classes: Classes, goes_on: bool = False) -> CheckResult:
    """Checks the disk space for the checkpoints of a run or of the trials of a sweep.

    For a resumed run, only the space for the next checkpoints is required.
    """
    there = next(one for one in (Path(config.results), *Path(config.results).parents) if node_probe.path_exists(one))
    kept = footprint.ALWAYS_KEPT if goes_on else footprint.num_kept_checkpoints(config)
    return checks.check_disk(
        config.results, node_probe.disk_free_bytes(str(there)), footprint.checkpoint_bytes(config, classes), kept
    )


def preflight_stop_timeout() -> CheckResult:
    """Checks that `ray job stop` leaves this process enough time to shut down in order."""
    return checks.check_stop_timeout(paths.job_stop_timeout_s())
