"""`ray job submit` on a head of its own, with token authentication: the documented command, to the registry."""

import json
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).with_name("ray")


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for found in sockets:
        found.bind(("127.0.0.1", 0))
    ports = [found.getsockname()[1] for found in sockets]
    for found in sockets:
        found.close()
    return ports


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """A head node with a token of its own; yields the environment of a shell that may use it.

    Like an image made for it, it has segray installed, the repository as its working directory, and SEGRAY_CONFIG.
    """
    port, dashboard, client, agent = free_ports(4)
    shell = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    shell |= {
        "PATH": f"{RAY.parent}:{os.environ['PATH']}",  # a job's `python` is the cluster's
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
        "SEGRAY_CONFIG": str(tmp_path_factory.mktemp("cluster") / "places.yaml"),
    }
    Path(shell["SEGRAY_CONFIG"]).touch()
    command = [RAY, "start", "--head", "--block", "--port", port, "--dashboard-port", dashboard]
    # Two heads on one machine would share the agent's default port, and the second would take no jobs.
    command += ["--ray-client-server-port", client, "--dashboard-agent-listen-port", agent, "--num-cpus", 2]
    command += ["--object-store-memory", 200_000_000]
    log = (tmp_path_factory.mktemp("head") / "log").open("w")
    process = subprocess.Popen(
        list(map(str, command)), cwd=ROOT, env=shell, stdout=log, stderr=log, start_new_session=True
    )
    shell["RAY_ADDRESS"] = f"http://127.0.0.1:{dashboard}"
    try:
        _wait_for_jobs(shell)
        yield shell
    finally:
        _end(process)


def _end(process):
    """Ends a head and all it has started: its own session, nobody else's processes."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:  # it waits half a minute for what has already ended
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)


def _wait_for_jobs(shell):
    # The agent that takes jobs starts after the server that lists them.
    for _ in range(40):
        tried = subprocess.run([RAY, "job", "submit", "--", "true"], env=shell, capture_output=True, check=False)
        if tried.returncode == 0:
            return
        time.sleep(1)
    raise AssertionError(f"the head took no job: {tried.stderr.decode()}")


def submit(shell, *words):
    command = [RAY, "job", "submit", "--working-dir", ".", "--runtime-env", "clusters/runtime-env.yaml", "--"]
    return subprocess.run(
        [*command, *map(str, words)], cwd=ROOT, env=shell, capture_output=True, text=True, timeout=300, check=False
    )


PLATFORM = "import platform, uuid; print('platform is', platform.__file__); platform.system()"
LOAD = """
import numpy as np
from segray import registry
from segray.predict import Predictor
folder = registry.fetch("models:/segray@challenger", "sqlite:///{place}/mlflow.db")
print(Predictor(folder)(np.zeros((96, 96, 3), np.uint8)).shape)
"""


def test_the_job_succeeds_and_another_shell_loads_what_it_registered(head, streets, tmp_path):
    train = ["python", "pipelines/train.py", "--config", "pipelines/configs/demo.yaml"]
    train += ["--data.root", streets, "--results", tmp_path / "results"]
    train += ["--data.crop", 32, "--train.steps", 2, "--train.batch", 2, "--optim.warmup_steps", 1]
    look = shlex.join(["python", "-c", PLATFORM])
    done = submit(head, "bash", "-c", f"{look} && {shlex.join(map(str, train))}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout + done.stderr
    assert "val mIoU" in done.stdout
    imported = done.stdout.split("platform is")[-1].splitlines()[0]
    assert imported.endswith("platform.py")
    assert "_ray_pkg_" not in imported
    code = LOAD.format(place=tmp_path)
    loaded = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "(96, 96)" in loaded.stdout, loaded.stderr


def test_the_bare_command_trains_with_the_places_of_the_cluster(head, streets, tmp_path):
    places = {
        "results": str(tmp_path / "results"),
        "data": {"root": str(streets), "crop": 32},
        "train": {"steps": 2, "batch": 2},
        "optim": {"warmup_steps": 1},
    }
    settings = Path(head["SEGRAY_CONFIG"])
    settings.write_text(json.dumps(places))  # JSON is YAML
    words = [RAY, "job", "submit", "--", "python", "pipelines/train.py"]
    done = subprocess.run(words, cwd=tmp_path, env=head, capture_output=True, text=True, timeout=300, check=False)
    settings.write_text("")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "val mIoU" in done.stdout
    assert len(list((tmp_path / "results").iterdir())) == 1


def test_without_the_token_a_job_is_refused(head):
    stranger = {name: value for name, value in head.items() if name != "RAY_AUTH_TOKEN"}
    done = submit(stranger | {"HOME": "/nonexistent"}, "true")
    assert done.returncode != 0
    assert "oken" in done.stdout + done.stderr
