"""Cluster diagnosis for users: all checks that finish within a few seconds."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import ray

from segray.cluster.connect import connect
from segray.cluster.doctor import checks
from segray.cluster.doctor.auth_probe import AuthProbe
from segray.cluster.doctor.probes import (
    NodeProbes,
    PendingProbes,
    ProbeResults,
    ResultsNotWritableError,
    by_node_name,
    check_nodes,
    node_probes,
    not_writable_result,
    probing_nodes,
)
from segray.cluster.doctor.results import CheckResult, Severity
from segray.cluster.nodes import NodeInfo, is_multi_host, list_nodes, potential_nodes
from segray.config import Config, paths
from segray.core.classes import Classes
from segray.core.errors import CapacityError, ConfigError, DataError, RegistryError
from segray.data.manifest import Manifest, read_manifest

ALL_REDUCE_ELEMENTS = 2**22  # number of float32 elements to sum
PLACEHOLDER_CLASSES = Classes(names=tuple(f"class {number}" for number in range(19)), palette=((0, 0, 0),) * 19)


def diagnose_cluster(config: Config, say: Callable[[str], None] = lambda _line: None) -> list[CheckResult]:
    """Checks the cluster and the paths and services named by a Config.

    Args:
        config: settings of the run or sweep to check for.
        say: callback that receives a line about each stage.

    Returns:
        One result for each check.
    """
    try:
        settled, uri = paths.resolve_paths(config), paths.tracking_uri(config)
    except ConfigError as error:
        return [CheckResult("places", Severity.FAIL, str(error).rstrip("."))]
    say("joining the cluster ...")
    try:
        connect(log_to_driver=False)
    except CapacityError as error:
        said, _, fix = str(error).rstrip(".").rpartition("; ")
        return [CheckResult("ray", Severity.FAIL, said, fix)]
    stranger = AuthProbe()
    manifest, unread = _manifest(settled.data.root)
    members = list_nodes()
    first = [
        _joined(members),
        checks.check_auth(stranger.is_rejected(), is_multi_host()),
        checks.check_capacity(settled, [one.resources for one in members], potential_nodes()),
        *unread,
    ]
    try:
        with probing_nodes(settled, manifest, members) as asked:
            say("asking its nodes ...")
            return [*first, *_of_the_run(settled, uri, manifest), *_of_the_nodes(settled, manifest, asked, say)]
    except ResultsNotWritableError as error:
        return [*first, not_writable_result(error), *_of_the_run(settled, uri, manifest)]


def _manifest(root: str) -> tuple[Manifest | None, list[CheckResult]]:
    """Returns the manifest of a dataset, or `None` and a result with the reason if it cannot be read."""
    try:
        return read_manifest(root), []
    except DataError as error:
        return None, [CheckResult("dataset", Severity.FAIL, str(error).rstrip("."))]


def _joined(members: Sequence[NodeInfo]) -> CheckResult:
    cpus, gpus = (sum(getattr(one.resources, name) for one in members) for name in ("cpus", "gpus"))
    where = os.environ.get("RAY_ADDRESS", "this machine")
    nodes = "1 node" if len(members) == 1 else f"{len(members)} nodes"
    return CheckResult("ray", Severity.OK, f"{ray.__version__} at {where}: {nodes}, {cpus:g} CPUs, {gpus:g} GPUs")


def _of_the_run(config: Config, uri: str, manifest: Manifest | None) -> list[CheckResult]:
    """Returns the results of the checks made by this process."""
    # Torch and MLflow take seconds to import. The node probes run during the import.
    from segray.training.preflight import check_disk_space, preflight_stop_timeout  # noqa: PLC0415

    return [
        checks.check_tracking(paths.redact(uri), is_multi_host(), _unanswered(uri)),
        check_disk_space(config, _classes(manifest)),
        preflight_stop_timeout(),
    ]


def _classes(manifest: Manifest | None) -> Classes:
    return PLACEHOLDER_CLASSES if manifest is None else manifest.classes


def _unanswered(uri: str) -> str:
    """Returns the reason why MLflow does not answer.

    The reason is empty if MLflow answers, or if the store is a file that the first run creates.
    """
    from segray.tracking.client import connect_mlflow  # noqa: PLC0415 as above

    if uri.startswith(paths.SQLITE) and not Path(uri.removeprefix(paths.SQLITE)).exists():
        return ""
    try:
        connect_mlflow(uri, "the registry", delays_s=())
    except RegistryError as error:
        return f"{paths.redact(uri)} does not answer ({type(error.__cause__).__name__})"
    return ""


def _of_the_nodes(
    config: Config, manifest: Manifest | None, asked: PendingProbes, say: Callable[[str], None]
) -> list[CheckResult]:
    """Returns the results of the checks on the nodes and on the network between them."""
    from segray.training import footprint  # noqa: PLC0415 as above

    told = asked.wait()
    if not told.answers.replies:
        return check_nodes(config, told)
    stores = {str(one): one.object_store_bytes for one in told.answers.replies}
    claimed = {str(one): one.resources.gpus for one in told.answers.replies}
    found = [
        *check_nodes(config, told),
        checks.check_gpus(claimed, told.reports),
        checks.check_clocks(by_node_name(asked.crew.clock_offsets_s(list(told.answers.replies)))),
        *checks.check_object_store(stores, told.reports),
        checks.check_temp_dir(told.reports),
    ]
    if sum(one.resources.cpus >= 1 or one.resources.gpus >= 1 for one in told.answers.replies) < 2:  # no network
        return found
    say("summing over the network ...")
    return [*found, _summed(told, asked.crew, footprint.gradient_bytes(config, _classes(manifest)))]


def _summed(told: ProbeResults, everybody: NodeProbes, gradients: int) -> CheckResult:
    """Returns the all-reduce bandwidth result.

    Uses nccl on the nodes with GPUs if there are several and all their GPUs are free, else gloo on all worker nodes.
    """
    with_gpus = [one for one in told.answers.replies if told.reports[str(one)].gpus and one.resources.gpus >= 1]
    if len(with_gpus) > 1 and _are_free(with_gpus):
        with node_probes(with_gpus, gpus=1) as found:
            return _summed_by("nccl", found, with_gpus, gradients)
    workers = [one for one in told.answers.replies if one.resources.cpus >= 1 or one.resources.gpus >= 1]
    return _summed_by("gloo", everybody, workers, gradients)


def _summed_by(backend: str, found: NodeProbes, members: Sequence[NodeInfo], gradients: int) -> CheckResult:
    answers = found.time_all_reduce(members, backend, ALL_REDUCE_ELEMENTS)
    if answers.failures:
        return checks.bandwidth_failed(by_node_name(answers.failures), backend)
    return checks.check_bandwidth(
        len(members), backend, 4 * ALL_REDUCE_ELEMENTS, max(answers.replies.values()), gradients
    )


def _are_free(members: Sequence[NodeInfo]) -> bool:
    """Returns `True` if the cluster has at least as many free GPUs as these nodes have in total."""
    return bool(ray.available_resources().get("GPU", 0.0) >= sum(one.resources.gpus for one in members))
