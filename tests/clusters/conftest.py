"""Heads of clusters on this machine: with an autoscaler that starts nodes here, and the MLflow server they share."""

import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from ray.util import get_node_ip_address

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
HEAD_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
PORTS = 20_000, 32_000
WORKERS = 3
IDLE_MINUTES = 0.1


def free_ports(count):
    """Ports below those that outgoing connections take meanwhile: a head is listening on them seconds later only."""
    ports = set()
    while len(ports) < count:
        with socket.socket() as found, suppress(OSError):
            found.bind(("127.0.0.1", random.randrange(*PORTS)))
            ports.add(found.getsockname()[1])
    return sorted(ports)


def until(happened, what, seconds=120, every=0.25):
    """Waits until something happened, and returns the seconds that took."""
    began = time.monotonic()
    while not happened():
        assert time.monotonic() - began < seconds, f"not in {seconds} s: {what}"
        time.sleep(every)
    return time.monotonic() - began


def end(process, seconds=30):
    """Ends a process and all of its session."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


@dataclass
class Head:
    """A cluster: how a shell uses it, and what is known of it."""

    shell: dict
    address: str
    process: subprocess.Popen
    folder: Path
    client_port: int
    how: tuple = ("--working-dir", ".", "--runtime-env", "clusters/runtime-env.yaml")
    started: list = field(default_factory=list)

    def run(self, *words, shell=None, seconds=120):
        """Runs a command in a shell of the cluster."""
        return subprocess.run(
            list(map(str, words)),
            cwd=ROOT,
            env=self.shell if shell is None else shell,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def submit(self, *words, how=None):
        """Submits a job, and returns its process and what follows its log."""
        command = [BIN / "ray", "job", "submit", *(self.how if how is None else how)]
        process = subprocess.Popen(
            list(map(str, [*command, "--", *words])),
            cwd=ROOT,
            env=self.shell,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.started.append(process)
        return process

    def alive(self):
        """The nodes that are alive, id by what they offer."""
        found = self.asked("/api/v0/nodes?limit=1000&detail=true")
        return {one["node_id"]: one["resources_total"] for one in found if one["state"] == "ALIVE"}

    def asked(self, path):
        """What the cluster's own interface says."""
        known = {"Authorization": f"Bearer {self.shell['RAY_AUTH_TOKEN']}"}
        request = urllib.request.Request(self.shell["RAY_API_SERVER_ADDRESS"] + path, headers=known)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)["data"]["result"]["result"]

    def nodes(self):
        """Those of them that have a GPU."""
        return [node for node, offers in self.alive().items() if "GPU" in offers]


def raylets(node_id):
    """The raylet of a node."""
    found = []
    for process in psutil.process_iter(["name", "cmdline"]):
        words = process.info["cmdline"] or []
        if process.info["name"] == "raylet" and any(node_id in word for word in words):
            found.append(process)
    return found


CONVERT = """
import sys
from segray.cluster.connect import connect
from segray.data.convert.convert import convert_dataset
from segray.data.convert.shards import ShardLimits
from segray.data.sources.sample import SourceListing; from segray.data.sources import demo
connect()
samples = demo.demo_samples(splits={"train": 41, "val": 7, "test": 5})
listing = SourceListing(samples, demo.demo_classes(), absent_ok=True)
convert_dataset(listing, sys.argv[1], bounds=ShardLimits(group_rows=4))
"""


@pytest.fixture(scope="session")
def streets(tmp_path_factory):
    """A few streets; this process is to know no cluster."""
    out = tmp_path_factory.mktemp("data") / "streets"
    alone = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    subprocess.run([sys.executable, "-c", CONVERT, out], check=True, env=alone)
    return out


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory):
    """A server that several machines could share; yields its address."""
    folder = tmp_path_factory.mktemp("mlflow")
    (port,) = free_ports(1)
    words = ["server", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--host", "127.0.0.1", "--port", port]
    words += ["--artifacts-destination", folder / "artifacts", "--workers", 1]
    log = (folder / "log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *map(str, words)], cwd=folder, stdout=log, stderr=log, start_new_session=True
    )
    url = f"http://127.0.0.1:{port}"

    def answers():
        assert process.poll() is None, (folder / "log").read_text()
        with suppress(OSError):
            return urllib.request.urlopen(f"{url}/health", timeout=2).status == 200
        return False

    until(answers, "MLflow's server answers")
    yield url
    end(process)


def head_shell(folder, **more):
    """The environment of a shell that may use a cluster of its own."""
    shell = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHONPATH"))}
    return shell | {
        "PATH": f"{BIN}:{os.environ['PATH']}",  # a job's `python` is the cluster's
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
        "NO_ALBUMENTATIONS_UPDATE": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        **more,
    }


def start_head(folder, shell, *words, port=None):
    """Starts a head and waits until it takes jobs."""
    free, dashboard, client, agent = free_ports(4)
    port = port or free
    command = [BIN / "ray", "start", "--head", "--block", "--port", port, "--dashboard-port", dashboard]
    # Two heads on one machine would share the agent's default port, and the second would take no jobs.
    command += ["--ray-client-server-port", client, "--dashboard-agent-listen-port", agent]
    command += ["--temp-dir", folder / "ray", *words]
    log = folder / "head.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            list(map(str, command)), cwd=ROOT, env=shell, stdout=out, stderr=out, start_new_session=True
        )
    jobs = {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    head = Head(shell | jobs, f"127.0.0.1:{port}", process, folder, client)

    def takes_jobs():
        assert process.poll() is None, log.read_text()
        return head.run(BIN / "ray", "job", "submit", "--", "true").returncode == 0

    try:
        until(takes_jobs, "the head takes jobs", every=1)
    except BaseException:
        end(process)
        raise
    return head


@pytest.fixture(scope="module")
def autoscaled(tmp_path_factory):
    """A head whose autoscaler starts nodes with a GPU, that nobody has, on this machine, and ends them when idle."""
    folder = tmp_path_factory.mktemp("c")
    node = {"node_config": {}, "min_workers": 0}
    (port,) = free_ports(1)
    provider = {"type": "external", "module": PROVIDER, "head_node_id": HEAD_ID, "launch_multiple": True}
    settings = {
        "cluster_name": "segray",
        "max_workers": WORKERS,
        "upscaling_speed": 10,
        "idle_timeout_minutes": IDLE_MINUTES,
        "provider": provider | {"gcs_address": f"{get_node_ip_address()}:{port}"},
        "available_node_types": {
            "ray.head.default": {**node, "resources": {"CPU": 2}, "max_workers": 0},
            "gpu": {
                **node,
                "resources": {"CPU": 1, "GPU": 1, "object_store_memory": 200_000_000},
                "max_workers": WORKERS,
            },
        },
        "head_node_type": "ray.head.default",  # the provider knows it by this name
        **{key: {} for key in ("auth", "docker", "file_mounts")},
        **{key: [] for key in ("initialization_commands", "setup_commands", "head_setup_commands")},
        **{key: [] for key in ("worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands")},
        **{key: [] for key in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
    }
    config = folder / "autoscaling.json"
    config.write_text(json.dumps(settings))
    shell = head_shell(
        folder,
        AUTOSCALER_UPDATE_INTERVAL_S="1",
        RAY_FAKE_CLUSTER="1",
        RAY_enable_autoscaler_v2="1",
        RAY_health_check_period_ms="1000",
        RAY_health_check_failure_threshold="3",
        RAY_JOB_STOP_WAIT_TIME_S="60",
    )
    once = {"RAY_CLOUD_INSTANCE_ID": HEAD_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID}
    words = ["--autoscaling-config", config, "--num-cpus", 2, "--object-store-memory", 200_000_000]
    head = start_head(folder, shell | once, *words, port=port)
    for name in once:
        del head.shell[name]
    head.how = ()  # nodes on one machine share a job's working directory, and the first that goes removes it
    done = head.run(sys.executable, ROOT / "clusters/report_node_types.py", config, head.address)
    assert done.returncode == 0, done.stderr
    yield head
    for process in head.started:
        process.kill()
    end(head.process, 5)
