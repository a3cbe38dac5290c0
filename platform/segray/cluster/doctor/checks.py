"""Checks of the reports of nodes, as pure functions."""

from collections import Counter
from collections.abc import Mapping, Sequence

from segray.cluster.doctor.node_probe import NodeReport
from segray.cluster.doctor.results import MAX_NAMED, CheckResult, Severity, format_nodes
from segray.cluster.resources import NodeResources, allocate_trials, allocate_workers
from segray.config import Config
from segray.core.errors import CapacityError
from segray.core.numbers import GIB, MIB

CLOCK_S = 1.0
CLOCK_MOST_S = 300.0  # S3 and TLS reject clocks that differ by minutes
MIN_STORE = 128 * MIB  # several blocks of 32 MiB
MIN_TEMPORARY = 2 * GIB
MIN_BYTES_PER_S = GIB / 8  # bytes per second: 1 Gbit/s
MAX_REDUCE_S = 1.0
MIN_STOP_TIMEOUT_S = 30  # time for a checkpoint of a large variant on slow storage


def check_responses(silent: Mapping[str, str], asked: int, level: Severity = Severity.FAIL) -> CheckResult:
    """Checks that all nodes respond.

    Args:
        silent: reason by name of each node that does not respond.
        asked: number of probed nodes.
        level: severity of a node that does not respond.
    """
    if not silent:
        return CheckResult("nodes", Severity.OK, f"{asked} answer" if asked > 1 else "this one answers")
    why = "; ".join(f"{name}: {reason}" for name, reason in list(silent.items())[:MAX_NAMED])
    found = f"{len(silent)} of {asked} cannot work: {why}"
    return CheckResult("nodes", level, found, "look into the logs of their raylets, or end them")


def check_capacity(config: Config, alive: Sequence[NodeResources], possible: Sequence[NodeResources]) -> CheckResult:
    """Checks that the cluster can hold the run or sweep, now or after the autoscaler starts nodes.

    Args:
        config: settings of the run or sweep.
        alive: nodes that are alive.
        possible: nodes to which the cluster can grow.
    """
    wanted, is_sweep = config.train, bool(config.tune.space)

    def room(nodes: Sequence[NodeResources]) -> str:
        if is_sweep:
            found = allocate_trials(nodes, wanted.workers, wanted.device, config.tune.max_concurrent)
            return f"{found.num_concurrent} trials at once, each {found.placement}"
        return str(allocate_workers(nodes, wanted.workers, wanted.device, least=wanted.min_workers))

    check = "sweep fits" if is_sweep else "run fits"
    try:
        most = room(possible)
    except CapacityError as error:
        said, _, fix = str(error).rstrip(".").rpartition("; ")
        return CheckResult(check, Severity.FAIL, said, fix)
    try:
        now = room(alive)
    except CapacityError:
        return CheckResult(check, Severity.OK, f"once nodes are started: {most}")
    return CheckResult(check, Severity.OK, now if now == most else f"{now}; once nodes are started: {most}")


def check_versions(ours: Mapping[str, str], theirs: Mapping[str, NodeReport]) -> CheckResult:
    """Checks that all nodes have the same versions as this process."""
    others = {
        f"{library} {report.versions.get(library, 'missing')} on {name}, {version} here"
        for name, report in theirs.items()
        for library, version in ours.items()
        if _release(report.versions.get(library)) != _release(version)
    }
    if not others:
        told = ", ".join(f"{library} {version}" for library, version in ours.items())
        return CheckResult("versions", Severity.OK, told)
    more = f" and {len(others) - MAX_NAMED} more" if len(others) > MAX_NAMED else ""
    found = "; ".join(sorted(others)[:MAX_NAMED]) + more
    return CheckResult(
        "versions", Severity.FAIL, found, "install segray by the same constraints.txt, or image, everywhere"
    )


def _release(version: str | None) -> str | None:
    """Returns a version without its build tag, because torch builds differ between nodes with and without GPUs."""
    return None if version is None else version.partition("+")[0]


def check_gpus(claimed: Mapping[str, float], theirs: Mapping[str, NodeReport]) -> CheckResult:
    """Checks that the nodes have the GPUs that Ray offers."""
    wrong = [name for name, report in theirs.items() if report.gpus < claimed.get(name, 0)]
    if wrong:
        first = wrong[0]
        found = f"{first} offers {claimed[first]:g} GPUs, its driver shows {theirs[first].gpus}"
        return CheckResult("gpus", Severity.WARN, found, "look at nvidia-smi there, and at --num-gpus of its ray start")
    return CheckResult("gpus", Severity.OK, f"{sum(claimed.values()):g} offered, and there")


def check_clocks(ahead_s: Mapping[str, float]) -> CheckResult:
    """Checks that the clocks of the nodes agree with the local clock."""
    off = {name: seconds for name, seconds in ahead_s.items() if abs(seconds) > CLOCK_S}
    if not off:
        return CheckResult("clocks", Severity.OK, f"agree within {CLOCK_S:g} s")
    most = max(off.values(), key=abs)
    level = Severity.FAIL if abs(most) > CLOCK_MOST_S else Severity.WARN
    found = f"{format_nodes(off)} {'ahead' if most > 0 else 'behind'} by up to {abs(most):.0f} s"
    return CheckResult("clocks", level, found, "let chrony or systemd-timesyncd set them")


def check_storage(results: str, theirs: Mapping[str, NodeReport]) -> CheckResult:
    """Checks that all nodes see the results folder and can write to it."""
    wrong = {name: report.storage for name, report in theirs.items() if report.storage}
    fix = "expected storage that all nodes share, such as NFS; see --results"
    return _everywhere("results", wrong, f"{results} is written to", fix)


def check_dataset(root: str, theirs: Mapping[str, NodeReport]) -> CheckResult:
    """Checks that all nodes can read the dataset."""
    wrong = {name: report.dataset for name, report in theirs.items() if report.dataset}
    return _everywhere("dataset", wrong, f"{root} is read", "expected a folder that all nodes share, or s3:// or gs://")


def _everywhere(check: str, wrong: Mapping[str, str], done: str, fix: str) -> CheckResult:
    """Returns the result of a check that every node must pass, from the errors by node name."""
    if not wrong:
        return CheckResult(check, Severity.OK, f"{done} from every node that is there")
    return CheckResult(check, Severity.FAIL, f"{next(iter(wrong.values())).rstrip('.')}, on {format_nodes(wrong)}", fix)


def check_disk(results: str, free: int | None, checkpoint: int, kept: int) -> CheckResult:
    """Checks that the disk can hold the checkpoints of a run.

    Args:
        results: results folder.
        free: free bytes on its disk, or None if unknown.
        checkpoint: size of a checkpoint in bytes.
        kept: number of checkpoints that exist at the same time.
    """
    needs = f"{kept} checkpoints of {checkpoint / MIB:.0f} MiB"
    if free is None:
        return CheckResult("disk", Severity.FAIL, f"{results} cannot be asked for its room", "see --results")
    found = f"{free / GIB:.1f} GiB left at {results}; a run keeps {needs}"
    if free < checkpoint * kept:
        return CheckResult("disk", Severity.FAIL, found, "make room, or name another place with --results")
    return CheckResult("disk", Severity.OK if free > 2 * checkpoint * kept else Severity.WARN, found, "")


def check_temp_dir(theirs: Mapping[str, NodeReport]) -> CheckResult:
    """Checks that Ray has disk space for its logs and for objects spilled from memory."""
    tight = [name for name, report in theirs.items() if report.temporary < MIN_TEMPORARY]
    if not tight:
        return CheckResult("temporary", Severity.OK, f"more than {MIN_TEMPORARY / GIB:g} GiB left for Ray's own files")
    least = min(report.temporary for report in theirs.values())
    found = f"{least / GIB:.1f} GiB left for Ray's own files on {format_nodes(tight)}"
    return CheckResult("temporary", Severity.WARN, found, "make room, or start Ray with another --temp-dir")


def check_object_store(stores: Mapping[str, int], theirs: Mapping[str, NodeReport]) -> list[CheckResult]:
    """Checks that the object stores are large enough and lie in memory."""
    small = [name for name, store in stores.items() if store < MIN_STORE]
    least = min(stores.values(), default=0)
    told = CheckResult("object store", Severity.OK, f"{least / MIB:.0f} MiB a node at least")
    if small:
        found = f"{least / MIB:.0f} MiB on {format_nodes(small)}; expected {MIN_STORE // MIB} MiB"
        told = CheckResult("object store", Severity.WARN, found, "start Ray there with a larger --object-store-memory")
    on_disk = [
        name
        for name, report in theirs.items()
        if report.shared_memory is not None and report.shared_memory < stores.get(name, 0)
    ]
    if not on_disk:
        return [told, CheckResult("shared memory", Severity.OK, "/dev/shm holds the object store")]
    found = f"/dev/shm is smaller than the object store on {format_nodes(on_disk)}, which lies on disk instead"
    return [
        told,
        CheckResult("shared memory", Severity.WARN, found, "give the container --shm-size, or mount a larger /dev/shm"),
    ]


def check_bandwidth(nodes: int, backend: str, size: int, seconds: float, gradients: int) -> CheckResult:
    """Checks the measured bandwidth of the all-reduce between nodes.

    Args:
        nodes: number of nodes.
        backend: backend of torch.distributed.
        size: size of the reduced tensor in bytes.
        seconds: duration of the all-reduce.
        gradients: size in bytes of the gradients that each step of the run reduces.
    """
    # Bytes per second that each node sends and receives in a ring all-reduce.
    rate = 2 * (nodes - 1) / nodes * size / seconds
    step_s = gradients / size * seconds
    found = f"{rate / GIB * 8:.1f} Gbit/s by {backend} over {nodes} nodes; a step's gradients take {step_s:.2f} s"
    if rate < MIN_BYTES_PER_S and step_s > MAX_REDUCE_S:
        fix = "use nodes of one zone with faster networks, or larger steps by --train.accumulation_steps"
        return CheckResult("network", Severity.WARN, found, fix)
    return CheckResult("network", Severity.OK, found)


def bandwidth_failed(silent: Mapping[str, str], backend: str) -> CheckResult:
    """Returns the failed check for nodes whose all-reduce failed.

    Args:
        silent: reason of the failure by node name.
        backend: backend of torch.distributed.
    """
    reasons = Counter(silent.values())
    found = f"{format_nodes(silent)} cannot sum over the network by {backend}: {reasons.most_common(1)[0][0]}"
    variable = "NCCL_SOCKET_IFNAME" if backend == "nccl" else "GLOO_SOCKET_IFNAME"
    fix = f"open all ports between the nodes, and name the interface between them in {variable} on each"
    return CheckResult("network", Severity.FAIL, found, fix)


def check_tracking(uri: str, spans_machines: bool, error: str) -> CheckResult:
    """Checks that MLflow responds, and that all machines can use it.

    Args:
        uri: tracking URI without its password.
        spans_machines: whether the cluster has, or can have, several machines.
        error: error of a request to MLflow, or an empty string.
    """
    if uri.startswith("sqlite") and spans_machines:
        return CheckResult(
            "tracking", Severity.FAIL, f"{uri} is a file, which one machine alone sees", SERVER_HINT.format(uri=uri)
        )
    if error:
        return CheckResult(
            "tracking", Severity.FAIL, error.rstrip("."), "start it, or name another with --tracking.uri"
        )
    return CheckResult("tracking", Severity.OK, f"{uri} answers")


SERVER_HINT = (
    "start a server on one of them, mlflow server --backend-store-uri {uri} --artifacts-destination ./mlartifacts "
    "--host ADDRESS --allowed-hosts ADDRESS:5000, and use --tracking.uri http://ADDRESS:5000"
)


def check_stop_timeout(wait_s: int | None) -> CheckResult:
    """Checks that `ray job stop` gives a job enough time to write a checkpoint.

    Args:
        wait_s: timeout in seconds before the job is killed, or None outside a submitted job.
    """
    if wait_s is None:
        return CheckResult("job stop", Severity.OK, "not in a submitted job: Ctrl-C ends it in order")
    found = f"`ray job stop` kills this job after {wait_s} s"
    if wait_s < MIN_STOP_TIMEOUT_S:
        variable = f"RAY_JOB_STOP_WAIT_TIME_S={MIN_STOP_TIMEOUT_S}"
        fix = f"submit it with --runtime-env clusters/runtime-env.yaml, or set {variable}"
        return CheckResult("job stop", Severity.WARN, f"{found}, in the middle of a checkpoint perhaps", fix)
    return CheckResult("job stop", Severity.OK, found)


def check_auth(is_locked: bool | None, spans_machines: bool) -> CheckResult:
    """Checks that the cluster requires a token.

    Args:
        is_locked: whether clients without a token are rejected, or None if unknown.
        spans_machines: whether the cluster has, or can have, several machines.
    """
    if is_locked:
        return CheckResult("token", Severity.OK, "asked for: who has none is refused")
    if is_locked is None:
        return CheckResult(
            "token", Severity.WARN, "whether who has none is refused was not found out", "look at the head's log"
        )
    level = Severity.WARN if spans_machines else Severity.OK
    fix = "start all nodes with RAY_AUTH_MODE=token and one token" if spans_machines else ""
    return CheckResult("token", level, "none is asked for: who reaches the cluster can run what they like on it", fix)
