"""Cluster diagnosis for users: all checks that finish within a few seconds."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ray
from ray.actor import ActorHandle

from segray.cluster.connect import connect
from segray.cluster.doctor import checks
from segray.cluster.doctor.checks import CheckResult, Severity
from segray.cluster.doctor.node_checks import check_hardware, check_run_requirements, results_not_writable
from segray.cluster.doctor.node_probe import NodeReport
from segray.cluster.doctor.probes import (
    ResultsNotWritableError,
    measure_clock_offset_s,
    node_probes,
    report_nodes,
    requires_token,
    select_errors,
    start_auth_probe,
    time_all_reduce,
)
from segray.cluster.nodes import NodeInfo, is_multi_host, list_nodes, potential_nodes
from segray.config import Config, DataConfig, paths
from segray.core.classes import Classes
from segray.core.errors import CapacityError, ConfigError, DataError, RegistryError
from segray.data.augment.augmenter import validate_augment
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
        resolved, uri = paths.resolve_paths(config), paths.tracking_uri(config)
    except ConfigError as error:
        return [CheckResult("paths", Severity.FAIL, str(error).rstrip("."))]
    say("connecting to the cluster ...")
    try:
        connect(log_to_driver=False)
    except CapacityError as error:
        return [checks.failed_result("ray", error)]
    auth_probe = start_auth_probe()
    manifest, manifest_results = _read_manifest(resolved.data.root)
    nodes = list_nodes()
    results = [
        _describe_cluster(nodes),
        checks.check_auth(requires_token(auth_probe), is_multi_host()),
        checks.check_capacity(resolved, [node.resources for node in nodes], potential_nodes()),
        *manifest_results,
        *_check_augment(resolved.data),
    ]
    say("probing the nodes ...")
    with ThreadPoolExecutor(1) as pool, node_probes(nodes) as probes:
        pending = pool.submit(report_nodes, probes, resolved, manifest)
        results += _check_services(resolved, uri, manifest)  # imports torch and MLflow, which takes seconds
        try:
            replies = pending.result()
        except ResultsNotWritableError as error:
            return [*results, results_not_writable(error)]
        return results + _check_nodes(resolved, manifest, probes, replies, say)


def _read_manifest(root: str) -> tuple[Manifest | None, list[CheckResult]]:
    """Returns the manifest of a dataset, or None and a result with the reason if it cannot be read."""
    try:
        return read_manifest(root), []
    except DataError as error:
        return None, [CheckResult("dataset", Severity.FAIL, str(error).rstrip("."))]


def _check_augment(config: DataConfig) -> list[CheckResult]:
    """Returns a result only if a transform of `data.augment` is invalid."""
    try:
        validate_augment(config)
    except ConfigError as error:
        return [CheckResult("augmentation", Severity.FAIL, str(error).rstrip("."))]
    return []


def _describe_cluster(nodes: Sequence[NodeInfo]) -> CheckResult:
    cpus, gpus = sum(node.resources.cpus for node in nodes), sum(node.resources.gpus for node in nodes)
    address = os.environ.get("RAY_ADDRESS", "this machine")
    count = "1 node" if len(nodes) == 1 else f"{len(nodes)} nodes"
    return CheckResult("ray", Severity.OK, f"{ray.__version__} at {address}: {count}, {cpus:g} CPUs, {gpus:g} GPUs")


def _check_services(config: Config, uri: str, manifest: Manifest | None) -> list[CheckResult]:
    """Makes the checks that need no other node: MLflow, the disk and the timeout of a stopped job."""
    from segray.training.preflight import check_disk_space, preflight_stop_timeout  # noqa: PLC0415 imports torch

    return [
        checks.check_tracking(paths.redact(uri), is_multi_host(), _tracking_error(uri)),
        check_disk_space(config, _classes(manifest)),
        preflight_stop_timeout(),
    ]


def _classes(manifest: Manifest | None) -> Classes:
    return PLACEHOLDER_CLASSES if manifest is None else manifest.classes


def _tracking_error(uri: str) -> str:
    """Returns the reason why MLflow does not respond.

    The reason is empty if MLflow responds, or if the store is a file that the first run creates.
    """
    from segray.tracking.client import connect_mlflow  # noqa: PLC0415 imports MLflow

    if uri.startswith(paths.SQLITE) and not Path(uri.removeprefix(paths.SQLITE)).exists():
        return ""
    try:
        connect_mlflow(uri, "the registry", delays_s=())
    except RegistryError as error:
        return f"{paths.redact(uri)} does not respond ({type(error.__cause__).__name__})"
    return ""


def _check_nodes(
    config: Config,
    manifest: Manifest | None,
    probes: dict[NodeInfo, ActorHandle],
    replies: dict[NodeInfo, NodeReport | str],
    say: Callable[[str], None],
) -> list[CheckResult]:
    """Returns the results of the checks on the nodes and on the network between them."""
    from segray.training.footprint import gradient_bytes  # noqa: PLC0415 imports torch

    results = check_run_requirements(config, manifest, replies)
    reports = {node: reply for node, reply in replies.items() if isinstance(reply, NodeReport)}
    if not reports:
        return results
    results += check_hardware(replies, {node: measure_clock_offset_s(probes[node]) for node in reports})
    workers = [node for node in reports if node.resources.cpus >= 1 or node.resources.gpus >= 1]
    if len(workers) < 2:  # no network between workers
        return results
    say("measuring the network ...")
    gradients = gradient_bytes(config, _classes(manifest))
    with_gpus = [node for node in workers if node.resources.gpus >= 1 and reports[node].num_gpus]
    if len(with_gpus) > 1 and _are_gpus_free(with_gpus):
        with node_probes(with_gpus, gpus=1) as gpu_probes:
            return [*results, _check_network("nccl", gpu_probes, gradients)]
    return [*results, _check_network("gloo", {node: probes[node] for node in workers}, gradients)]


def _check_network(backend: str, probes: dict[NodeInfo, ActorHandle], gradients: int) -> CheckResult:
    """Returns the result of an all-reduce over some nodes."""
    durations = time_all_reduce(probes, backend, ALL_REDUCE_ELEMENTS)
    if errors := select_errors(durations):
        return checks.bandwidth_failed({str(node): error for node, error in errors.items()}, backend)
    slowest = max(float(duration) for duration in durations.values())
    return checks.check_bandwidth(len(probes), backend, 4 * ALL_REDUCE_ELEMENTS, slowest, gradients)


def _are_gpus_free(nodes: Sequence[NodeInfo]) -> bool:
    """Returns True if the cluster has at least as many free GPUs as these nodes have in total."""
    return bool(ray.available_resources().get("GPU", 0.0) >= sum(node.resources.gpus for node in nodes))
