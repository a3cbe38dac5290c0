"""Checks of what the nodes report."""

import pytest

from segray import config
from segray.cluster.doctor import checks, node_checks
from segray.cluster.doctor.checks import CheckResult, Severity, format_nodes, max_severity
from segray.cluster.doctor.node_probe import NodeReport
from segray.cluster.resources import NodeResources

OK, WARN, FAIL = Severity.OK, Severity.WARN, Severity.FAIL
GIB = 2**30
OURS = {"python": "3.11.7", "ray": "2.60.0", "torch": "2.13.0"}
HEALTHY = NodeReport(versions=OURS, shared_memory_bytes=8 * GIB, temp_free_bytes=9 * GIB)


def report(**differs):
    return NodeReport(**(vars(HEALTHY) | differs))


def two(**differs):
    return {"head": HEALTHY, "other": report(**differs)}


def test_a_healthy_cluster_gives_nothing_to_say():
    theirs = two()
    found = [
        node_checks.check_responses({}, 2),
        node_checks.check_versions(OURS, theirs),
        node_checks.check_gpus({"head": 0, "other": 0}, theirs),
        node_checks.check_clocks({"head": 0.0, "other": 0.2}),
        node_checks.check_storage("/r", theirs),
        node_checks.check_dataset("/d", theirs),
        checks.check_disk("/r", 9 * GIB, GIB, 3),
        node_checks.check_temp_dir(theirs),
        *node_checks.check_object_store({"head": GIB, "other": GIB}, theirs),
        checks.check_tracking("http://head:5000", True, ""),
        checks.check_tracking("sqlite:////r/mlflow.db", False, ""),
        checks.check_stop_timeout(None),
        checks.check_stop_timeout(60),
        checks.check_auth(True, True),
        checks.check_auth(False, False),
        checks.check_bandwidth(2, "gloo", 2**24, 0.1, 2**24),
    ]
    assert [(one.level, one.fix) for one in found] == [(OK, "")] * len(found)


@pytest.mark.parametrize(
    ("verdict", "level", "said"),
    [
        (node_checks.check_responses({"other": "gone"}, 2), FAIL, "1 of 2 nodes cannot run tasks: other: gone"),
        (node_checks.check_versions(OURS, two(versions=OURS | {"torch": "2.12.0"})), FAIL, "torch 2.12.0 on other"),
        (
            node_checks.check_versions(OURS, two(versions={"ray": "2.60.0"})),
            FAIL,
            "python missing on other, 3.11.7 here",
        ),
        (
            node_checks.check_gpus({"other": 4}, two(num_gpus=3)),
            WARN,
            "other offers 4 GPUs, but its NVIDIA driver reports 3",
        ),
        (node_checks.check_clocks({"other": 20.0}), WARN, "the clock of node other is ahead by up to 20 s"),
        (node_checks.check_clocks({"other": -400.0}), FAIL, "the clock of node other is behind by up to 400 s"),
        (
            node_checks.check_storage("/r", two(results_error="/r does not exist")),
            FAIL,
            "on node other: /r does not exist",
        ),
        (node_checks.check_dataset("/d", two(dataset_error="/d is gone.")), FAIL, "on node other: /d is gone; "),
        (checks.check_disk("/r", 2 * GIB, GIB, 3), FAIL, "2.0 GiB free at /r; a run keeps 3 checkpoints of 1024 MiB"),
        (checks.check_disk("/r", 5 * GIB, GIB, 3), WARN, "5.0 GiB free"),
        (checks.check_disk("/r", None, GIB, 3), FAIL, "cannot determine the free space of /r"),
        (
            node_checks.check_temp_dir(two(temp_free_bytes=GIB)),
            WARN,
            "1.0 GiB free for Ray's temporary files on node other",
        ),
        (
            node_checks.check_object_store({"other": 2**26}, {})[0],
            WARN,
            "64 MiB on node other; expected at least 128 MiB",
        ),
        (
            node_checks.check_object_store({"other": GIB}, two(shared_memory_bytes=2**26))[1],
            WARN,
            "/dev/shm is smaller than the object store",
        ),
        (
            checks.check_tracking("sqlite:////r/mlflow.db", True, ""),
            FAIL,
            "mlflow server --backend-store-uri sqlite:////r",
        ),
        (checks.check_tracking("http://head:5000", True, "no answer."), FAIL, "no answer; start the MLflow server"),
        (checks.check_stop_timeout(3), WARN, "`ray job stop` kills this job after 3 s"),
        (checks.check_auth(False, True), WARN, "every client that reaches the cluster can run any code"),
        (checks.check_auth(None, True), WARN, "cannot determine whether"),
        (
            checks.check_bandwidth(2, "gloo", 2**24, 1.0, 2**27),
            WARN,
            "0.1 Gbit/s with gloo on 2 nodes; the gradients of a step take 8",
        ),
        (
            checks.bandwidth_failed({"other": "timeout"}, "gloo"),
            FAIL,
            "the all-reduce with gloo failed on node other: timeout",
        ),
    ],
)
def test_what_is_wrong_is_told_with_what_to_do(verdict, level, said):
    assert verdict.level is level
    assert said in str(verdict)
    assert verdict.fix or verdict.check == "disk"


def test_another_build_of_a_version_is_the_same_version():
    assert node_checks.check_versions(OURS, two(versions=OURS | {"torch": "2.13.0+cpu"})).level is OK


def test_before_a_run_a_node_that_says_nothing_is_told_and_no_more():
    assert node_checks.check_responses({"other": "gone"}, 2, WARN).level is WARN


def test_a_network_is_only_slow_where_a_step_waits_for_it():
    assert checks.check_bandwidth(2, "gloo", 2**24, 1.0, 2**20).level is OK


@pytest.mark.parametrize(
    ("settings", "alive", "possible", "level", "said"),
    [
        ({"train.workers": 2}, [NodeResources(2)], [NodeResources(2)], OK, "2 x cpu worker"),
        (
            {"train.workers": 3},
            [NodeResources(2)],
            [NodeResources(2)],
            FAIL,
            "train.workers is 3, with one CPU each; the cluster can hold 2",
        ),
        (
            {"train.device": "cuda"},
            [NodeResources(2)],
            [NodeResources(2)],
            FAIL,
            "use --train.device cpu, or a cluster with GPUs",
        ),
        (
            {"train.device": "cuda"},
            [NodeResources(2)],
            [NodeResources(2), NodeResources(4, 1)],
            OK,
            "after the autoscaler starts nodes: 1 x cuda worker",
        ),
        (
            {"train.workers": 2, "tune.space": '{"optim.lr": {"choice": [1e-3]}}', "tune.max_concurrent": 2},
            [NodeResources(2)],
            [NodeResources(2)],
            FAIL,
            "the cluster can hold 1 such trials",
        ),
        (
            {"tune.space": '{"optim.lr": {"choice": [1e-3]}}'},
            [NodeResources(2)],
            [NodeResources(2)],
            OK,
            "2 concurrent trials",
        ),
    ],
)
def test_a_run_or_sweep_fits_now_or_once_nodes_are_started(settings, alive, possible, level, said):
    found = checks.check_capacity(config.build(settings), alive, possible)
    assert found.level is level
    assert said in str(found)


def test_many_nodes_are_named_by_the_first():
    assert format_nodes("abcde") == "nodes a, b, c and 2 more"
    assert format_nodes("a") == "node a"


def test_the_worst_of_all_counts():
    assert max_severity([]) is OK
    assert max_severity(CheckResult("x", level, "") for level in (OK, FAIL, WARN)) is FAIL
    assert max_severity(CheckResult("x", level, "") for level in (OK, WARN)) is WARN
