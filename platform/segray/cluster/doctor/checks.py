"""Results of the doctor, and the checks of the cluster and of the services of a run, as pure functions."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from segray.cluster.resources import NodeResources, allocate_trials, allocate_workers
from segray.config import Config
from segray.core.errors import CapacityError

MAX_NAMED = 3
MIB, GIB = 2**20, 2**30
MIN_BYTES_PER_S = GIB / 8  # 1 Gbit/s
MAX_REDUCE_S = 1.0
MIN_STOP_TIMEOUT_S = 30  # time for a checkpoint of a large variant on slow storage


class Severity(StrEnum):
    """Severity of a result."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class CheckResult:
    """Result of a check.

    Attributes:
        check: name of the check.
        level: severity of the result.
        found: description of the finding.
        fix: suggested fix, or an empty string if none is needed.
    """

    check: str
    level: Severity
    found: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.check}: {self.found}" + (f"; {self.fix}" if self.fix else "")


def max_severity(results: Iterable[CheckResult]) -> Severity:
    """Returns the highest severity of the results, or OK if there are none."""
    order = list(Severity)
    return max((result.level for result in results), key=order.index, default=Severity.OK)


def format_nodes(nodes: Iterable[str]) -> str:
    """Returns the names of the first few nodes and the number of the others."""
    names = list(nodes)
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return f"{'node' if len(names) == 1 else 'nodes'} {', '.join(names[:MAX_NAMED])}{more}"


def failed_result(check: str, error: Exception) -> CheckResult:
    """Returns the failed check for an error whose message ends with "; " and the suggested fix."""
    found, _, fix = str(error).rstrip(".").rpartition("; ")
    return CheckResult(check, Severity.FAIL, found, fix)


def check_capacity(config: Config, alive: Sequence[NodeResources], potential: Sequence[NodeResources]) -> CheckResult:
    """Checks that the cluster can hold the run or sweep, now or after the autoscaler starts nodes.

    Args:
        config: settings of the run or sweep.
        alive: nodes that are alive.
        potential: nodes to which the cluster can grow.
    """
    train, is_sweep = config.train, bool(config.tune.space)

    def allocate(nodes: Sequence[NodeResources]) -> str:
        if is_sweep:
            slots = allocate_trials(nodes, train.workers, train.device, config.tune.max_concurrent)
            return f"{slots.num_concurrent} concurrent trials, each {slots.placement}"
        return str(allocate_workers(nodes, train.workers, train.device, min_workers=train.min_workers))

    check = "sweep fits" if is_sweep else "run fits"
    try:
        later = allocate(potential)
    except CapacityError as error:
        return failed_result(check, error)
    try:
        now = allocate(alive)
    except CapacityError:
        return CheckResult(check, Severity.OK, f"after the autoscaler starts nodes: {later}")
    return CheckResult(
        check, Severity.OK, now if now == later else f"{now}; after the autoscaler starts nodes: {later}"
    )


def check_disk(results: str, free: int | None, checkpoint: int, num_kept: int) -> CheckResult:
    """Checks that the disk can hold the checkpoints of a run.

    Args:
        results: results folder.
        free: free bytes on its disk, or None if unknown.
        checkpoint: size of a checkpoint in bytes.
        num_kept: number of checkpoints that exist at the same time.
    """
    if free is None:
        fix = "check that the folder is accessible, or set --results to another folder"
        return CheckResult("disk", Severity.FAIL, f"cannot determine the free space of {results}", fix)
    found = f"{free / GIB:.1f} GiB free at {results}; a run keeps {num_kept} checkpoints of {checkpoint / MIB:.0f} MiB"
    if free < checkpoint * num_kept:
        return CheckResult("disk", Severity.FAIL, found, "free disk space, or set --results to another folder")
    return CheckResult("disk", Severity.OK if free > 2 * checkpoint * num_kept else Severity.WARN, found)


def check_bandwidth(num_nodes: int, backend: str, size: int, seconds: float, gradients: int) -> CheckResult:
    """Checks the measured bandwidth of the all-reduce between nodes.

    Args:
        num_nodes: number of nodes.
        backend: backend of torch.distributed.
        size: size of the reduced tensor in bytes.
        seconds: duration of the all-reduce.
        gradients: size in bytes of the gradients that each step of the run reduces.
    """
    # Bytes per second that each node sends and receives in a ring all-reduce.
    rate = 2 * (num_nodes - 1) / num_nodes * size / seconds
    step_s = gradients / size * seconds
    found = (
        f"{rate / GIB * 8:.1f} Gbit/s with {backend} on {num_nodes} nodes; the gradients of a step take {step_s:.2f} s"
    )
    if rate < MIN_BYTES_PER_S and step_s > MAX_REDUCE_S:
        fix = "use nodes of one zone with a faster network, or larger steps with --train.accumulation_steps"
        return CheckResult("network", Severity.WARN, found, fix)
    return CheckResult("network", Severity.OK, found)


def bandwidth_failed(errors: Mapping[str, str], backend: str) -> CheckResult:
    """Returns the failed check for nodes whose all-reduce failed.

    Args:
        errors: error message by node name.
        backend: backend of torch.distributed.
    """
    most_common = Counter(errors.values()).most_common(1)[0][0]
    found = f"the all-reduce with {backend} failed on {format_nodes(errors)}: {most_common}"
    variable = "NCCL_SOCKET_IFNAME" if backend == "nccl" else "GLOO_SOCKET_IFNAME"
    fix = f"open all ports between the nodes, and set {variable} on each node to the network interface between them"
    return CheckResult("network", Severity.FAIL, found, fix)


def check_tracking(uri: str, is_multi_host: bool, error: str) -> CheckResult:
    """Checks that MLflow responds, and that all machines can use it.

    Args:
        uri: tracking URI without its password.
        is_multi_host: whether the cluster has, or can have, several machines.
        error: error of a request to MLflow, or an empty string.
    """
    if uri.startswith("sqlite") and is_multi_host:
        found = f"{uri} is an SQLite file, and the cluster has, or can have, several machines"
        return CheckResult("tracking", Severity.FAIL, found, SERVER_HINT.format(uri=uri))
    if error:
        fix = "start the MLflow server, or set --tracking.uri to another one"
        return CheckResult("tracking", Severity.FAIL, error.rstrip("."), fix)
    return CheckResult("tracking", Severity.OK, f"{uri} responds")


SERVER_HINT = (
    "start a server on one machine, mlflow server --backend-store-uri {uri} --artifacts-destination ./mlartifacts "
    "--host ADDRESS --allowed-hosts ADDRESS:5000, and set --tracking.uri http://ADDRESS:5000"
)


def check_stop_timeout(timeout_s: int | None) -> CheckResult:
    """Checks that `ray job stop` gives a job enough time to write a checkpoint.

    Args:
        timeout_s: timeout in seconds before the job is killed, or None outside a submitted job.
    """
    if timeout_s is None:
        return CheckResult("job stop", Severity.OK, "not in a submitted job: Ctrl-C stops the run gracefully")
    found = f"`ray job stop` kills this job after {timeout_s} s"
    if timeout_s < MIN_STOP_TIMEOUT_S:
        variable = f"RAY_JOB_STOP_WAIT_TIME_S={MIN_STOP_TIMEOUT_S}"
        fix = f"submit it with --runtime-env clusters/runtime-env.yaml, or set {variable}"
        return CheckResult("job stop", Severity.WARN, f"{found}, possibly before a checkpoint is complete", fix)
    return CheckResult("job stop", Severity.OK, found)


def check_auth(requires_token: bool | None, is_multi_host: bool) -> CheckResult:
    """Checks that the cluster requires a token.

    Args:
        requires_token: whether the cluster rejects clients without a token, or None if unknown.
        is_multi_host: whether the cluster has, or can have, several machines.
    """
    if requires_token:
        return CheckResult("token", Severity.OK, "required: the cluster rejects clients without a token")
    if requires_token is None:
        found = "cannot determine whether the cluster rejects clients without a token"
        return CheckResult("token", Severity.WARN, found, "read the logs of the head in /tmp/ray/session_latest/logs")
    level = Severity.WARN if is_multi_host else Severity.OK
    fix = "start all nodes with RAY_AUTH_MODE=token and the same token" if is_multi_host else ""
    return CheckResult(
        "token", level, "not required: every client that reaches the cluster can run any code on it", fix
    )
