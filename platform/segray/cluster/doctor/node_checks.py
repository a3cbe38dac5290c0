"""Checks of the reports of nodes, as pure functions."""

from collections.abc import Mapping

from segray.cluster.doctor.checks import GIB, MAX_NAMED, MIB, CheckResult, Severity, format_nodes
from segray.cluster.doctor.node_probe import NodeReport, probe_versions
from segray.cluster.nodes import NodeInfo
from segray.config import Config
from segray.data.manifest import Manifest
from segray.data.storage import strip_credentials

MAX_CLOCK_OFFSET_S = 1.0
MAX_S3_CLOCK_OFFSET_S = 300.0  # S3 and TLS reject clocks that differ by minutes
MIN_STORE = 128 * MIB  # several blocks of 32 MiB
MIN_TEMPORARY = 2 * GIB


def check_run_requirements(
    config: Config,
    manifest: Manifest | None,
    replies: Mapping[NodeInfo, NodeReport | str],
    unresponsive: Severity = Severity.FAIL,
) -> list[CheckResult]:
    """Makes the checks that the nodes must pass before every run.

    Args:
        config: settings of the run.
        manifest: manifest of the dataset, or None if the nodes did not read the dataset.
        replies: report or error message of each node.
        unresponsive: severity of a node that does not respond.
    """
    errors = {str(node): reply for node, reply in replies.items() if isinstance(reply, str)}
    reports = reports_by_name(replies)
    results = [check_responses(errors, len(replies), unresponsive)]
    if reports:
        results += [check_versions(probe_versions(), reports), check_storage(config.results, reports)]
    if reports and manifest is not None:
        results.append(check_dataset(strip_credentials(config.data.root), reports))
    return results


def check_hardware(
    replies: Mapping[NodeInfo, NodeReport | str], clock_offsets_s: Mapping[NodeInfo, float]
) -> list[CheckResult]:
    """Checks the GPUs, clocks, memory and disks of the nodes that responded."""
    reports = reports_by_name(replies)
    nodes = {str(node): node for node in replies if str(node) in reports}
    return [
        check_gpus({name: node.resources.gpus for name, node in nodes.items()}, reports),
        check_clocks({str(node): offset for node, offset in clock_offsets_s.items()}),
        *check_object_store({name: node.object_store_bytes for name, node in nodes.items()}, reports),
        check_temp_dir(reports),
    ]


def reports_by_name(replies: Mapping[NodeInfo, NodeReport | str]) -> dict[str, NodeReport]:
    """Returns the reports of the nodes that responded, by node name."""
    return {str(node): reply for node, reply in replies.items() if isinstance(reply, NodeReport)}


def check_responses(errors: Mapping[str, str], num_nodes: int, level: Severity = Severity.FAIL) -> CheckResult:
    """Checks that all nodes respond.

    Args:
        errors: error message by name of each node that does not respond.
        num_nodes: number of probed nodes.
        level: severity of a node that does not respond.
    """
    if not errors:
        found = f"all {num_nodes} nodes respond" if num_nodes > 1 else "the only node responds"
        return CheckResult("nodes", Severity.OK, found)
    details = "; ".join(f"{name}: {error}" for name, error in list(errors.items())[:MAX_NAMED])
    fix = "read the raylet logs on them in /tmp/ray/session_latest/logs, or stop these nodes"
    return CheckResult("nodes", level, f"{len(errors)} of {num_nodes} nodes cannot run tasks: {details}", fix)


def check_versions(expected: Mapping[str, str], reports: Mapping[str, NodeReport]) -> CheckResult:
    """Checks that all nodes have the same versions as this process."""
    differences = {
        f"{library} {report.versions.get(library, 'missing')} on {name}, {version} here"
        for name, report in reports.items()
        for library, version in expected.items()
        if _release(report.versions.get(library)) != _release(version)
    }
    if not differences:
        versions = ", ".join(f"{library} {version}" for library, version in expected.items())
        return CheckResult("versions", Severity.OK, versions)
    more = f" and {len(differences) - MAX_NAMED} more" if len(differences) > MAX_NAMED else ""
    found = "; ".join(sorted(differences)[:MAX_NAMED]) + more
    fix = "install segray with the same constraints.txt, or use the same image, on all nodes"
    return CheckResult("versions", Severity.FAIL, found, fix)


def _release(version: str | None) -> str | None:
    """Returns a version without its build tag, because torch builds differ between nodes with and without GPUs."""
    return None if version is None else version.partition("+")[0]


def check_storage(results: str, reports: Mapping[str, NodeReport]) -> CheckResult:
    """Checks that all nodes see the results folder and can write to it."""
    errors = {name: report.results_error for name, report in reports.items() if report.results_error}
    fix = "set --results to a folder that all nodes share, such as NFS"
    return _check_all_nodes("results", errors, f"all nodes can write to {results}", fix)


def results_not_writable(error: Exception) -> CheckResult:
    """Returns the failed check for a results folder to which this process cannot write."""
    return CheckResult("results", Severity.FAIL, str(error), "set --results to another folder")


def check_dataset(root: str, reports: Mapping[str, NodeReport]) -> CheckResult:
    """Checks that all nodes can read the dataset."""
    errors = {name: report.dataset_error for name, report in reports.items() if report.dataset_error}
    fix = "set --data.root to a folder that all nodes share, or to an s3:// or gs:// URI"
    return _check_all_nodes("dataset", errors, f"all nodes can read {root}", fix)


def _check_all_nodes(check: str, errors: Mapping[str, str], passed: str, fix: str) -> CheckResult:
    """Returns the result of a check that every node must pass, from the errors by node name."""
    if not errors:
        return CheckResult(check, Severity.OK, passed)
    first = next(iter(errors.values())).rstrip(".")
    return CheckResult(check, Severity.FAIL, f"on {format_nodes(errors)}: {first}", fix)


def check_gpus(offered: Mapping[str, float], reports: Mapping[str, NodeReport]) -> CheckResult:
    """Checks that the nodes have the GPUs that Ray offers."""
    for name, report in reports.items():
        if report.num_gpus < offered.get(name, 0):
            found = f"{name} offers {offered[name]:g} GPUs, but its NVIDIA driver reports {report.num_gpus}"
            fix = "run nvidia-smi on this node, and correct --num-gpus of its `ray start`"
            return CheckResult("gpus", Severity.WARN, found, fix)
    count = f"{sum(offered.values()):g}"
    found = f"all {count} GPUs that Ray schedules exist" if count != "0" else "the cluster has no GPUs"
    return CheckResult("gpus", Severity.OK, found)


def check_clocks(offsets_s: Mapping[str, float]) -> CheckResult:
    """Checks that the clocks of the nodes agree with the local clock."""
    wrong = {name: offset for name, offset in offsets_s.items() if abs(offset) > MAX_CLOCK_OFFSET_S}
    if not wrong:
        return CheckResult("clocks", Severity.OK, f"all clocks agree within {MAX_CLOCK_OFFSET_S:g} s")
    largest = max(wrong.values(), key=abs)
    level = Severity.FAIL if abs(largest) > MAX_S3_CLOCK_OFFSET_S else Severity.WARN
    found = (
        f"the clock of {format_nodes(wrong)} is {'ahead' if largest > 0 else 'behind'} by up to {abs(largest):.0f} s"
    )
    return CheckResult("clocks", level, found, "synchronize the clocks with chrony or systemd-timesyncd")


def check_temp_dir(reports: Mapping[str, NodeReport]) -> CheckResult:
    """Checks that Ray has disk space for its logs and for objects spilled from memory."""
    low = [name for name, report in reports.items() if report.temp_free_bytes < MIN_TEMPORARY]
    if not low:
        found = f"more than {MIN_TEMPORARY / GIB:g} GiB free for Ray's temporary files on all nodes"
        return CheckResult("temporary", Severity.OK, found)
    smallest = min(report.temp_free_bytes for report in reports.values())
    found = f"{smallest / GIB:.1f} GiB free for Ray's temporary files on {format_nodes(low)}"
    return CheckResult("temporary", Severity.WARN, found, "free disk space, or start Ray with another --temp-dir")


def check_object_store(stores: Mapping[str, int], reports: Mapping[str, NodeReport]) -> list[CheckResult]:
    """Checks that the object stores are large enough and lie in memory."""
    small = [name for name, size in stores.items() if size < MIN_STORE]
    smallest = min(stores.values(), default=0)
    size_result = CheckResult("object store", Severity.OK, f"at least {smallest / MIB:.0f} MiB on each node")
    if small:
        found = f"{smallest / MIB:.0f} MiB on {format_nodes(small)}; expected at least {MIN_STORE // MIB} MiB"
        fix = "start Ray on these nodes with a larger --object-store-memory"
        size_result = CheckResult("object store", Severity.WARN, found, fix)
    on_disk = [
        name
        for name, report in reports.items()
        if report.shared_memory_bytes is not None and report.shared_memory_bytes < stores.get(name, 0)
    ]
    if not on_disk:
        return [size_result, CheckResult("shared memory", Severity.OK, "/dev/shm holds the object store on all nodes")]
    found = f"/dev/shm is smaller than the object store on {format_nodes(on_disk)}, so the object store is on disk"
    fix = "start the container with a larger --shm-size, or mount a larger /dev/shm"
    return [size_result, CheckResult("shared memory", Severity.WARN, found, fix)]
