"""What nodes said, judged; pure."""

from collections import Counter
from collections.abc import Mapping, Sequence

from segray.capacity import Node, place, slots
from segray.config import Config
from segray.doctor.node import Report
from segray.doctor.verdicts import MOST_NAMED, Level, Verdict, named
from segray.errors import CapacityError

MIB, GIB = 2**20, 2**30
CLOCK_S = 1.0
CLOCK_MOST_S = 300.0  # S3, and whoever checks a certificate, refuse clocks that are minutes apart
LEAST_STORE = 128 * MIB  # of blocks of 32 MiB, several at once
LEAST_TEMPORARY = 2 * GIB
SLOW = GIB / 8  # bytes a second: 1 Gbit/s
MOST_REDUCE_S = 1.0
WAIT_S = 30  # for a checkpoint of the larger variants on slow storage


def answered(silent: Mapping[str, str], asked: int, level: Level = Level.FAIL) -> Verdict:
    """Judges whether all nodes answer.

    Args:
        silent: why some do not.
        asked: how many were.
        level: of a node that does not.
    """
    if not silent:
        return Verdict("nodes", Level.OK, f"{asked} answer" if asked > 1 else "this one answers")
    why = "; ".join(f"{name}: {reason}" for name, reason in list(silent.items())[:MOST_NAMED])
    found = f"{len(silent)} of {asked} cannot work: {why}"
    return Verdict("nodes", level, found, "look into the logs of their raylets, or end them")


def fits(config: Config, alive: Sequence[Node], possible: Sequence[Node]) -> Verdict:
    """Judges whether the run or the sweep has room: on the nodes that are alive, or once others were started."""
    wanted, is_sweep = config.train, bool(config.tune.space)

    def room(nodes: Sequence[Node]) -> str:
        if is_sweep:
            found = slots(nodes, wanted.workers, wanted.device, config.tune.concurrent)
            return f"{found.count} trials at once, each {found.placement}"
        return str(place(nodes, wanted.workers, wanted.device, least=wanted.min_workers))

    check = "sweep fits" if is_sweep else "run fits"
    try:
        most = room(possible)
    except CapacityError as error:
        said, _, fix = str(error).rstrip(".").rpartition("; ")
        return Verdict(check, Level.FAIL, said, fix)
    try:
        now = room(alive)
    except CapacityError:
        return Verdict(check, Level.OK, f"once nodes are started: {most}")
    return Verdict(check, Level.OK, now if now == most else f"{now}; once nodes are started: {most}")


def same_versions(ours: Mapping[str, str], theirs: Mapping[str, Report]) -> Verdict:
    """Judges whether all nodes have the versions of this process."""
    others = {
        f"{library} {report.versions.get(library, 'missing')} on {name}, {version} here"
        for name, report in theirs.items()
        for library, version in ours.items()
        if _release(report.versions.get(library)) != _release(version)
    }
    if not others:
        told = ", ".join(f"{library} {version}" for library, version in ours.items())
        return Verdict("versions", Level.OK, told)
    more = f" and {len(others) - MOST_NAMED} more" if len(others) > MOST_NAMED else ""
    found = "; ".join(sorted(others)[:MOST_NAMED]) + more
    return Verdict("versions", Level.FAIL, found, "install segray by the same constraints.txt, or image, everywhere")


def _release(version: str | None) -> str | None:
    """Returns a version without what it was built for: a head without a GPU has another build of torch."""
    return None if version is None else version.partition("+")[0]


def gpus(claimed: Mapping[str, float], theirs: Mapping[str, Report]) -> Verdict:
    """Judges whether the GPUs that Ray gives away are there."""
    wrong = [name for name, report in theirs.items() if report.gpus < claimed.get(name, 0)]
    if wrong:
        first = wrong[0]
        found = f"{first} offers {claimed[first]:g} GPUs, its driver shows {theirs[first].gpus}"
        return Verdict("gpus", Level.WARN, found, "look at nvidia-smi there, and at --num-gpus of its ray start")
    return Verdict("gpus", Level.OK, f"{sum(claimed.values()):g} offered, and there")


def clocks(ahead_s: Mapping[str, float]) -> Verdict:
    """Judges whether the nodes' clocks agree with ours."""
    off = {name: seconds for name, seconds in ahead_s.items() if abs(seconds) > CLOCK_S}
    if not off:
        return Verdict("clocks", Level.OK, f"agree within {CLOCK_S:g} s")
    most = max(off.values(), key=abs)
    level = Level.FAIL if abs(most) > CLOCK_MOST_S else Level.WARN
    found = f"{named(off)} {'ahead' if most > 0 else 'behind'} by up to {abs(most):.0f} s"
    return Verdict("clocks", level, found, "let chrony or systemd-timesyncd set them")


def storage(results: str, theirs: Mapping[str, Report]) -> Verdict:
    """Judges whether all nodes see the results' folder, and may write to it."""
    wrong = {name: report.storage for name, report in theirs.items() if report.storage}
    fix = "expected storage that all nodes share, such as NFS; see --results"
    return _everywhere("results", wrong, f"{results} is written to", fix)


def datasets(root: str, theirs: Mapping[str, Report]) -> Verdict:
    """Judges whether all nodes can read the dataset."""
    wrong = {name: report.dataset for name, report in theirs.items() if report.dataset}
    return _everywhere("dataset", wrong, f"{root} is read", "expected a folder that all nodes share, or s3:// or gs://")


def _everywhere(check: str, wrong: Mapping[str, str], done: str, fix: str) -> Verdict:
    """Judges what every node has to be able to do, by what is wrong on some."""
    if not wrong:
        return Verdict(check, Level.OK, f"{done} from every node that is there")
    return Verdict(check, Level.FAIL, f"{next(iter(wrong.values())).rstrip('.')}, on {named(wrong)}", fix)


def disk(results: str, free: int | None, checkpoint: int, kept: int) -> Verdict:
    """Judges whether the checkpoints of a run find room.

    Args:
        results: folder.
        free: bytes left on its disk, none if that is not known.
        checkpoint: bytes of one.
        kept: checkpoints that are there at once.
    """
    needs = f"{kept} checkpoints of {checkpoint / MIB:.0f} MiB"
    if free is None:
        return Verdict("disk", Level.FAIL, f"{results} cannot be asked for its room", "see --results")
    found = f"{free / GIB:.1f} GiB left at {results}; a run keeps {needs}"
    if free < checkpoint * kept:
        return Verdict("disk", Level.FAIL, found, "make room, or name another place with --results")
    return Verdict("disk", Level.OK if free > 2 * checkpoint * kept else Level.WARN, found, "")


def temporary(theirs: Mapping[str, Report]) -> Verdict:
    """Judges whether Ray finds room for its logs and for objects that memory has no place for."""
    tight = [name for name, report in theirs.items() if report.temporary < LEAST_TEMPORARY]
    if not tight:
        return Verdict("temporary", Level.OK, f"more than {LEAST_TEMPORARY / GIB:g} GiB left for Ray's own files")
    least = min(report.temporary for report in theirs.values())
    found = f"{least / GIB:.1f} GiB left for Ray's own files on {named(tight)}"
    return Verdict("temporary", Level.WARN, found, "make room, or start Ray with another --temp-dir")


def memory(stores: Mapping[str, int], theirs: Mapping[str, Report]) -> list[Verdict]:
    """Judges object stores: whether they are large enough, and lie in memory."""
    small = [name for name, store in stores.items() if store < LEAST_STORE]
    least = min(stores.values(), default=0)
    told = Verdict("object store", Level.OK, f"{least / MIB:.0f} MiB a node at least")
    if small:
        found = f"{least / MIB:.0f} MiB on {named(small)}; expected {LEAST_STORE // MIB} MiB"
        told = Verdict("object store", Level.WARN, found, "start Ray there with a larger --object-store-memory")
    on_disk = [
        name
        for name, report in theirs.items()
        if report.shared_memory is not None and report.shared_memory < stores.get(name, 0)
    ]
    if not on_disk:
        return [told, Verdict("shared memory", Level.OK, "/dev/shm holds the object store")]
    found = f"/dev/shm is smaller than the object store on {named(on_disk)}, which lies on disk instead"
    return [
        told,
        Verdict("shared memory", Level.WARN, found, "give the container --shm-size, or mount a larger /dev/shm"),
    ]


def network(nodes: int, backend: str, size: int, seconds: float, gradients: int) -> Verdict:
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
    if rate < SLOW and step_s > MOST_REDUCE_S:
        fix = "use nodes of one zone with faster networks, or larger steps by --train.accumulate"
        return Verdict("network", Level.WARN, found, fix)
    return Verdict("network", Level.OK, found)


def unmet(silent: Mapping[str, str], backend: str) -> Verdict:
    """Judges nodes that cannot sum what they hold."""
    reasons = Counter(silent.values())
    found = f"{named(silent)} cannot sum over the network by {backend}: {reasons.most_common(1)[0][0]}"
    variable = "NCCL_SOCKET_IFNAME" if backend == "nccl" else "GLOO_SOCKET_IFNAME"
    fix = f"open all ports between the nodes, and name the interface between them in {variable} on each"
    return Verdict("network", Level.FAIL, found, fix)


def tracking(uri: str, spans_machines: bool, error: str) -> Verdict:
    """Judges whether MLflow answers, and is one that several machines can share.

    Args:
        uri: of the store, its password left out.
        spans_machines: whether the cluster has, or may have, several.
        error: it gave; empty if it answers.
    """
    if uri.startswith("sqlite") and spans_machines:
        return Verdict("tracking", Level.FAIL, f"{uri} is a file, which one machine alone sees", SERVER.format(uri=uri))
    if error:
        return Verdict("tracking", Level.FAIL, error.rstrip("."), "start it, or name another with --tracking.uri")
    return Verdict("tracking", Level.OK, f"{uri} answers")


SERVER = (
    "start a server on one of them, mlflow server --backend-store-uri {uri} --artifacts-destination ./mlartifacts "
    "--host ADDRESS --allowed-hosts ADDRESS:5000, and use --tracking.uri http://ADDRESS:5000"
)


def stopping(wait_s: int | None) -> Verdict:
    """Judges whether `ray job stop` leaves a job the time to keep a checkpoint.

    Args:
        wait_s: it waits before it kills; none outside a submitted job.
    """
    if wait_s is None:
        return Verdict("job stop", Level.OK, "not in a submitted job: Ctrl-C ends it in order")
    found = f"`ray job stop` kills this job after {wait_s} s"
    if wait_s < WAIT_S:
        fix = f"submit it with --runtime-env clusters/runtime-env.yaml, or set RAY_JOB_STOP_WAIT_TIME_S={WAIT_S}"
        return Verdict("job stop", Level.WARN, f"{found}, in the middle of a checkpoint perhaps", fix)
    return Verdict("job stop", Level.OK, found)


def locked(is_locked: bool | None, spans_machines: bool) -> Verdict:
    """Judges whether the cluster asks for a token.

    Args:
        is_locked: whether who has none is refused; none if that was not found out.
        spans_machines: whether it has, or may have, several.
    """
    if is_locked:
        return Verdict("token", Level.OK, "asked for: who has none is refused")
    if is_locked is None:
        return Verdict(
            "token", Level.WARN, "whether who has none is refused was not found out", "look at the head's log"
        )
    level = Level.WARN if spans_machines else Level.OK
    fix = "start all nodes with RAY_AUTH_MODE=token and one token" if spans_machines else ""
    return Verdict("token", level, "none is asked for: who reaches the cluster can run what they like on it", fix)
