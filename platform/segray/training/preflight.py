"""Before each run and sweep: the part of the doctor that takes no time."""

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
    """Refuses what cannot work on this cluster, and tells what is worth a look.

    A cluster of one node is asked nothing: what this process saw of data and results is all there is.

    Args:
        config: of the run or sweep, its places settled.
        uri: MLflow store.
        manifest: of the dataset.
        say: called with a line for each warning.
        goes_on: whether most of its checkpoints are there.

    Raises:
        ClusterError: something stands in the way; all that does is told.
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
                found += check_nodes(config, asked.wait(), silent=Severity.WARN)  # it may only have come, or be going
        except ResultsNotWritableError as error:
            found.append(not_writable_result(error))
    wrong = [verdict for verdict in found if verdict.level is Severity.FAIL]
    if wrong:
        raise ClusterError("\n".join(str(verdict) for verdict in wrong) + ".")
    for verdict in found:
        if verdict.level is Severity.WARN:
            say(f"{verdict}.")


def check_disk_space(config: Config, classes: Classes, goes_on: bool = False) -> CheckResult:
    """Judges whether the checkpoints of a run, or of a sweep's trials, find room: of one that goes on, the next."""
    there = next(one for one in (Path(config.results), *Path(config.results).parents) if node_probe.path_exists(one))
    kept = footprint.ALWAYS_KEPT if goes_on else footprint.num_kept_checkpoints(config)
    return checks.check_disk(
        config.results, node_probe.disk_free_bytes(str(there)), footprint.checkpoint_bytes(config, classes), kept
    )


def preflight_stop_timeout() -> CheckResult:
    """Judges whether `ray job stop` leaves this process the time to end in order."""
    return checks.check_stop_timeout(paths.job_stop_timeout_s())
