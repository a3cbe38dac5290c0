"""What nodes said, judged; pure."""

from collections import Counter
from collections.abc import Mapping, Sequence

from segray.cluster.doctor.node_probe import NodeReport
from segray.cluster.doctor.results import MAX_NAMED, CheckResult, Severity, format_nodes
from segray.cluster.resources import NodeResources, allocate_trials, allocate_workers
from segray.config import Config
from segray.core.errors import CapacityError

MIB, GIB = 2**20, 2**30
CLOCK_S = 1.0
CLOCK_MOST_S = 300.0  # S3, and whoever checks a certificate, refuse clocks that are minutes apart
MIN_STORE = 128 * MIB  # of blocks of 32 MiB, several at once
MIN_TEMPORARY = 2 * GIB
MIN_BYTES_PER_S = GIB / 8  # bytes a second: 1 Gbit/s
MAX_REDUCE_S = 1.0
MIN_STOP_TIMEOUT_S = 30  # for a checkpoint of the larger variants on slow storage


def check_responses(silent: Mapping[str, str], asked: int, level: Severity = Severity.FAIL) -> CheckResult:
    """Judges whether all nodes answer.

    Args:
        silent: why some do not.
        asked: how many were.
        level: of a node that does not.
    """
    if not silent:
        return CheckResult("nodes", Severity.OK, f"{asked} answer" if asked > 1 else "this one answers")
    why = "; ".join(f"{name}: {reason}" for name, reason in list(silent.items())[:MAX_NAMED])
    found = f"{len(silent)} of {asked} cannot work: {why}"
    return CheckResult("nodes", level, found, "look into the logs of their raylets, or end them")


def check_capacity(config: Config, alive: Sequence[NodeResources], possible: Sequence[NodeResources]) -> CheckResult:
    """Judges whether the run or the sweep has room: on the nodes that are alive, or once others were started."""
    wanted, is_sweep = config.train, bool(config.tune.space)

    def room(nodes: Sequence[NodeResources]) -> str:
        if is_sweep:
            found = allocate_trials(nodes, wanted.workers, wanted.device, config.tune.concurrent)
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
    """Judges whether all nodes have the versions of this process."""
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
    """Returns a version without what it was built for: a head without a GPU has another build of torch."""
    return None if version is None else version.partition("+")[0]


def check_gpus(claimed: Mapping[str, float], theirs: Mapping[str, NodeReport]) -> CheckResult:
    """Judges whether the GPUs that Ray gives away are there."""
    wrong = [name for name, report in theirs.items() if report.gpus < claimed.get(name, 0)]
    if wrong:
        first = wrong[0]
        found = f"{first} offers {claimed[first]:g} GPUs, its driver shows {theirs[first].gpus}"
        return CheckResult("gpus", Severity.WARN, found, "look at nvidia-smi there, and at --num-gpus of its ray start")
    return CheckResult("gpus", Severity.OK, f"{sum(claimed.values()):g} offered, and there")


def check_clocks(ahead_s: Mapping[str, float]) -> CheckResult:
    """Judges whether the nodes' clocks agree with ours."""
    off = {name: seconds for name, seconds in ahead_s.items() if abs(seconds) > CLOCK_S}
    if not off:
        return CheckResult("clocks", Severity.OK, f"agree within {CLOCK_S:g} s")
    most = max(off.values(), key=abs)
    level = Severity.FAIL if abs(most) > CLOCK_MOST_S else Severity.WARN
    found = f"{format_nodes(off)} {'ahead' if most > 0 else 'behind'} by up to {abs(most):.0f} s"
    return CheckResult("clocks", level, found, "let chrony or systemd-timesyncd set them")


def check_storage(results: str, theirs: Mapping[str, NodeReport]) -> CheckResult:
    """Judges whether all nodes see the results' folder, and may write to it."""
    wrong = {name: report.storage for name, report in theirs.items() if report.storage}
    fix = "expected storage that all nodes share, such as NFS; see --results"
    return _everywhere("results", wrong, f"{results} is written to", fix)


def check_dataset(root: str, theirs: Mapping[str, NodeReport]) -> CheckResult:
    """Judges whether all nodes can read the dataset."""
    wrong = {name: report.dataset for name, report in theirs.items() if report.dataset}
    return _everywhere("dataset", wrong, f"{root} is read", "expected a folder that all nodes share, or s3:// or gs://")


def _everywhere(check: str, wrong: Mapping[str, str], done: str, fix: str) -> CheckResult:
    """Judges what every node has to be able to do, by what is wrong on some."""
    if not wrong:
        return CheckResult(check, Severity.OK, f"{done} from every node that is there")
    return CheckResult(check, Severity.FAIL, f"{next(iter(wrong.values())).rstrip('.')}, on {format_nodes(wrong)}", fix)


def check_disk(results: str, free: int | None, checkpoint: int, kept: int) -> CheckResult:
    """Judges whether the checkpoints of a run find room.

    Args:
        results: folder.
        free: bytes left on its disk, none if that is not known.
        checkpoint: bytes of one.
        kept: checkpoints that are there at once.
    """
    needs = f"{kept} checkpoints of {checkpoint / MIB:.0f} MiB"
    if free is None:
        return CheckResult("disk", Severity.FAIL, f"{results} cannot be asked for its room", "see --results")
    found = f"{free / GIB:.1f} GiB left at {results}; a run keeps {needs}"
    if free < checkpoint * kept:
        return CheckResult("disk", Severity.FAIL, found, "make room, or name another place with --results")
    return CheckResult("disk", Severity.OK if free > 2 * checkpoint * kept else Severity.WARN, found, "")


def check_temp_dir(theirs: Mapping[str, NodeReport]) -> CheckResult:
    """Judges whether Ray finds room for its logs and for objects that memory has no place for."""
    tight = [name for name, report in theirs.items() if report.temporary < MIN_TEMPORARY]
    if not tight:
        return CheckResult("temporary", Severity.OK, f"more than {MIN_TEMPORARY / GIB:g} GiB left for Ray's own files")
    least = min(report.temporary for report in theirs.values())
    found = f"{least / GIB:.1f} GiB left for Ray's own files on {format_nodes(tight)}"
    return CheckResult("temporary", Severity.WARN, found, "make room, or start Ray with another --temp-dir")


def check_object_store(stores: Mapping[str, int], theirs: Mapping[str, NodeReport]) -> list[CheckResult]:
    """Judges object stores: whether they are large enough, and lie in memory."""
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
    """Judges how fast nodes sum what they hold.

    Args:
        nodes: that did.
        backend: by which.
        size: bytes of it.
        seconds: it took.
        gradients: bytes that each step of the run sums.
    """
    # What each node sends and receives in a ring.
    rate = 2 * (nodes - 1) / nodes * size / seconds
    step_s = gradients / size * seconds
    found = f"{rate / GIB * 8:.1f} Gbit/s by {backend} over {nodes} nodes; a step's gradients take {step_s:.2f} s"
    if rate < MIN_BYTES_PER_S and step_s > MAX_REDUCE_S:
        fix = "use nodes of one zone with faster networks, or larger steps by --train.accumulate"
        return CheckResult("network", Severity.WARN, found, fix)
    return CheckResult("network", Severity.OK, found)


def bandwidth_failed(silent: Mapping[str, str], backend: str) -> CheckResult:
    """Judges nodes that cannot sum what they hold."""
    reasons = Counter(silent.values())
    found = f"{format_nodes(silent)} cannot sum over the network by {backend}: {reasons.most_common(1)[0][0]}"
    variable = "NCCL_SOCKET_IFNAME" if backend == "nccl" else "GLOO_SOCKET_IFNAME"
    fix = f"open all ports between the nodes, and name the interface between them in {variable} on each"
    return CheckResult("network", Severity.FAIL, found, fix)


def check_tracking(uri: str, spans_machines: bool, error: str) -> CheckResult:
    """Judges whether MLflow answers, and is one that several machines can share.

    Args:
        uri: of the store, its password left out.
        spans_machines: whether the cluster has, or may have, several.
        error: it gave; empty if it answers.
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
    """Judges whether `ray job stop` leaves a job the time to keep a checkpoint.

    Args:
        wait_s: it waits before it kills; none outside a submitted job.
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
    """Judges whether the cluster asks for a token.

    Args:
        is_locked: whether who has none is refused; none if that was not found out.
        spans_machines: whether it has, or may have, several.
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
