"""The command against real clusters: each planted fault is found, and nothing where all is in order."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from segray.cluster.doctor.node_probe import VISIBILITY_TIMEOUT_S

from .conftest import BIN, ROOT, end, free_ports, head_shell, start_head, until

pytestmark = pytest.mark.slow

HEAD, OTHER = "127.0.0.1", "127.0.0.2"
MOST_S = 20  # without the time that a node waits for a shared file system
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")


class Cluster:
    """A head, and a second node that something may be wrong with."""

    def __init__(self, folder, streets, tracking, mode="token"):
        self.folder, self.streets, self.tracking = folder, streets, tracking
        self.results = folder / "shared/results"
        self.results.parent.mkdir()
        self.shell = head_shell(folder, RAY_AUTH_MODE=mode)
        words = ["--node-ip-address", HEAD, "--num-cpus", 2, "--object-store-memory", 200_000_000]
        self.head = start_head(folder, self.shell, *words)

    def doctor(self, *more, shell=(), most_s=MOST_S):
        """Runs the command, and returns its verdicts, what it said, and how long it took."""
        out = self.folder / "verdicts.json"
        out.unlink(missing_ok=True)
        words = ["--data.root", self.streets, "--results", self.results, "--tracking.uri", self.tracking]
        command = [sys.executable, ROOT / "pipelines/doctor.py", *words, "--json", out, *more]
        shell = self.head.shell | {"RAY_ADDRESS": self.head.address} | dict(shell)
        began = time.monotonic()
        done = self.head.run(*command, shell=shell)
        took = time.monotonic() - began
        assert took < most_s, done.stdout + done.stderr
        assert out.exists(), done.stdout + done.stderr
        verdicts = {one["check"]: one for one in json.loads(out.read_text())}
        is_wrong = any(one["level"] == "fail" for one in verdicts.values())
        assert done.returncode == (2 if is_wrong else 0), done.stdout + done.stderr
        assert not self.results.exists()  # nothing is left behind
        told = "\n".join(f"{one['found']}; {one['fix']}" for one in verdicts.values())
        return verdicts, f"{done.stdout}{done.stderr}\n{told}", took

    @contextmanager
    def other(self, *more, before="", shell=()):
        """A second node, in a mount namespace of its own where something is done before it starts."""
        alive = len(self.head.alive())
        words = ["--address", self.head.address, "--node-ip-address", OTHER, "--num-cpus", 1, "--block"]
        if "--object-store-memory" not in more:
            words += ["--object-store-memory", 200_000_000]
        ports = free_ports(1)
        command = shlex.join(map(str, [BIN / "ray", "start", *words, "--dashboard-agent-listen-port", *ports, *more]))
        start = ["unshare", "--mount", "sh", "-ec", f"{before}\nexec {command}"] if before else ["sh", "-c", command]
        log = self.folder / "other.log"
        with log.open("w") as out:
            process = subprocess.Popen(
                start, env=self.shell | dict(shell), cwd=ROOT, stdout=out, stderr=out, start_new_session=True
            )
        try:
            until(lambda: len(self.head.alive()) > alive, f"the node is there: {log.read_text()}", 60, every=0.5)
            yield
        finally:
            end(process, 5)
            until(lambda: len(self.head.alive()) == alive, "the node is gone", 60, every=0.5)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, streets, mlflow_server):
    found = Cluster(tmp_path_factory.mktemp("c"), streets, mlflow_server)
    yield found
    end(found.head.process, 5)


def levels(verdicts):
    return {check: one["level"] for check, one in verdicts.items() if one["level"] != "ok"}


def test_on_a_healthy_cluster_nothing_is_found(cluster):
    with cluster.other():
        verdicts, said, took = cluster.doctor()
    print(said)
    print(f"healthy, 2 nodes: {took:.1f} s")
    assert levels(verdicts) == {}
    assert "all checks passed." in said


def torch_of_another_version(folder):
    """A folder whose metadata says that torch is another."""
    place = folder / "other/torch-2.12.0.dist-info"
    place.mkdir(parents=True, exist_ok=True)
    (place / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.12.0\n")
    return {"PYTHONPATH": str(place.parent)}


def a_clock_that_is_ahead(folder):
    """A folder that has Python processes there believe it is later."""
    place = folder / "later"
    place.mkdir(exist_ok=True)
    (place / "sitecustomize.py").write_text("import time\n_now = time.time\ntime.time = lambda: _now() + 30\n")
    return {"PYTHONPATH": str(place)}


OF_THE_NODE = {
    "another torch": ({"shell": torch_of_another_version}, {"versions": "fail"}, "torch 2.12.0 on 127.0.0.2"),
    "a clock that is ahead": ({"shell": a_clock_that_is_ahead}, {"clocks": "warn"}, "ahead by up to 30 s"),
    "no way to the others": (
        {"shell": lambda _: {"GLOO_SOCKET_IFNAME": "none0"}},
        {"network": "fail"},
        "set GLOO_SOCKET_IFNAME on each node to the network interface",
    ),
    "GPUs that are not there": (
        {"words": ["--num-gpus", 4]},
        {"gpus": "warn"},
        "offers 4 GPUs, but its NVIDIA driver reports 0",
    ),
    "a small object store": (
        {"words": ["--object-store-memory", 80_000_000]},
        {"object store": "warn"},
        "76 MiB on node 127.0.0.2",
    ),
    "results that it does not see": (
        {"before": "mount -t tmpfs none {folder}/shared"},
        {"results": "fail"},
        r"on node 127\.0\.0\.2 .*results does not exist",
    ),
    "results that it may only read": (
        {"before": "mount --bind {folder}/shared {folder}/shared; mount -o remount,bind,ro {folder}/shared"},
        {"results": "fail"},
        r"on node 127\.0\.0\.2 .*results is not writable \(Read-only file system\)",
    ),
    "a dataset that it does not see": (
        {"before": "mount -t tmpfs none {streets}"},
        {"dataset": "fail"},
        "on node 127.0.0.2",
    ),
    "little shared memory": (
        {"before": "mount -t tmpfs -o size=64m none /dev/shm"},
        {"shared memory": "warn"},
        "/dev/shm is smaller than the object store on node 127.0.0.2",
    ),
}


@pytest.mark.parametrize("fault", OF_THE_NODE)
def test_a_fault_of_a_node_is_found(cluster, fault):
    how, expected, said = OF_THE_NODE[fault]
    if "before" in how and os.geteuid() != 0:
        pytest.skip("only root may mount")
    before = how.get("before", "").format(folder=cluster.folder, streets=cluster.streets)
    shell = how["shell"](cluster.folder) if "shell" in how else {}
    with cluster.other(*how.get("words", ()), before=before, shell=shell):
        waits_s = VISIBILITY_TIMEOUT_S if fault == "results that it does not see" else 0
        verdicts, told, took = cluster.doctor(most_s=MOST_S + waits_s)
    assert levels(verdicts) == expected, told
    assert re.search(said, told)
    print(f"{fault}: {took:.1f} s")


@needs_root
def test_a_disk_that_is_full_is_found(cluster, tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", place], check=True)
    try:
        verdicts, told, _ = cluster.doctor("--results", place / "results")
    finally:
        subprocess.run(["umount", place], check=True)
    assert levels(verdicts) == {"disk": "fail"}
    assert "a run keeps 3 checkpoints of" in told


ELSEWHERE = f"http://127.0.0.1:{free_ports(1)[0]}"


@pytest.mark.parametrize(
    ("words", "check", "said"),
    [
        (["--tracking.uri", ELSEWHERE], "tracking", "does not respond"),
        (["--data.root", "/nowhere/data"], "dataset", "/nowhere/data"),
        (["--train.workers", 9], "run fits", "the cluster can hold 2"),
        (["--train.device", "cuda"], "run fits", "or a cluster with GPUs"),
        (
            ["--tune.space", '{"optim.lr": {"choice": [1e-3]}}', "--tune.max_concurrent", 8],
            "sweep fits",
            "can hold 2 such",
        ),
    ],
)
def test_a_fault_of_the_settings_is_found(cluster, words, check, said):
    verdicts, told, took = cluster.doctor(*words)
    assert levels(verdicts) == {check: "fail"}, told
    assert said in told
    print(f"{check}: {took:.1f} s")


def test_a_file_as_mlflow_store_is_no_store_of_several_machines(cluster):
    with cluster.other():
        verdicts, told, _ = cluster.doctor("--tracking.uri", f"sqlite:///{cluster.folder}/mlflow.db")
    assert levels(verdicts) == {"tracking": "fail"}
    assert f"mlflow server --backend-store-uri sqlite:///{cluster.folder}/mlflow.db" in told


@pytest.mark.parametrize(
    ("shell", "said", "fix"),
    [
        (
            {"RAY_AUTH_TOKEN": "f" * 64},
            "this shell does not have the token",
            "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN",
        ),
        (
            {"RAY_AUTH_MODE": "disabled"},
            "this shell does not have the token",
            "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN",
        ),
        (
            {"RAY_AUTH_TOKEN": "", "HOME": "/nonexistent"},
            "this shell does not have the token",
            "set RAY_AUTH_MODE=token, and RAY_AUTH",
        ),
        ({"RAY_ADDRESS": ELSEWHERE.removeprefix("http://")}, "Connection refused", "start the head"),
        ({"RAY_ADDRESS": ELSEWHERE}, "the address of a job server", "submit this command with `ray job submit"),
    ],
)
def test_a_cluster_that_cannot_be_joined_is_told_in_time(cluster, shell, said, fix):
    verdicts, told, took = cluster.doctor(shell=shell)
    assert levels(verdicts) == {"ray": "fail"}
    assert said in told
    assert "Traceback" not in told
    print(told, f"{took:.1f} s")
    assert verdicts["ray"]["fix"].startswith(fix)


def test_another_ray_than_the_clusters_is_told(cluster):
    place = cluster.folder / "older"
    place.mkdir()
    (place / "sitecustomize.py").write_text("import ray\nray.__version__ = '2.59.0'\n")
    verdicts, told, _ = cluster.doctor(shell={"PYTHONPATH": str(place)})
    assert levels(verdicts) == {"ray": "fail"}
    assert verdicts["ray"]["fix"].startswith("use the versions of the cluster")
    assert "2.59.0" in told
    assert "2.60.0" in told
    assert "Traceback" not in told


def test_a_cluster_that_lets_strangers_in_is_told_though_this_shell_has_a_token(
    streets, mlflow_server, tmp_path_factory
):
    found = Cluster(tmp_path_factory.mktemp("o"), streets, mlflow_server, mode="disabled")
    try:
        with found.other():
            verdicts, told, _ = found.doctor(shell={"RAY_AUTH_MODE": "token"})
    finally:
        end(found.head.process, 5)
    # Workers of an open cluster have no token for who asks for one: it would not work, and nothing is told to be well.
    assert levels(verdicts) == {"token": "warn", "nodes": "fail"}, told
    assert not {"versions", "results", "dataset"} & set(verdicts)
    assert "every client that reaches the cluster can run any code on it" in told


def test_a_job_that_would_be_killed_too_early_is_warned_of(cluster):
    words = ["--data.root", cluster.streets, "--results", cluster.results, "--tracking.uri", cluster.tracking]
    job = cluster.head.submit("python", "pipelines/doctor.py", *words, how=())
    said, _ = job.communicate(timeout=120)
    assert "`ray job stop` kills this job after 3 s" in " ".join(said.split())
    job = cluster.head.submit("python", "pipelines/doctor.py", *words)
    said, _ = job.communicate(timeout=120)
    assert "`ray job stop` kills this job after 60 s" in " ".join(said.split())


def test_paths_that_a_job_loses_are_reported(cluster):
    job = cluster.head.submit("python", "pipelines/doctor.py", "--data.root", cluster.streets)
    said, _ = job.communicate(timeout=120)
    assert "results is results, a relative path" in said


def test_what_a_fault_of_a_node_does_to_a_run_is_told_before_it_begins(cluster):
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    with cluster.other(before=f"mount -t tmpfs none {cluster.folder}/shared"):
        words = ["--data.root", cluster.streets, "--results", cluster.results, "--tracking.uri", cluster.tracking]
        command = [sys.executable, ROOT / "pipelines/train.py", *words, "--train.workers", 2]
        began = time.monotonic()
        done = cluster.head.run(*command, shell=cluster.head.shell | {"RAY_ADDRESS": cluster.head.address})
        print(f"refused after {time.monotonic() - began:.1f} s")
    assert done.returncode == 2
    assert re.search(r"on node 127\.0\.0\.2 .*results does not exist", done.stderr)
    assert not Path(cluster.results).exists()
