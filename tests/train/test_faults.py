"""Runs whose workers, drivers and nodes are killed: they end as if nothing had been."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from mlflow.tracking import MlflowClient

from segray import checkpoint, store
from segray.tracking import Journal

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "pipelines" / "train.py"
STEPS = 40
WAIT_S = 180


CONVERT = """
import sys
from segray.data.ingest import convert
from segray.data.sources import demo
samples = demo.samples(splits={"train": 41, "val": 7, "test": 5})
convert(samples, demo.classes(), sys.argv[1], row_group_rows=4, absent_ok=True)
"""


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "streets"
    subprocess.run([sys.executable, "-c", CONVERT, out], check=True)  # this process is to know no cluster
    return out


@pytest.fixture(scope="module")
def nodes():
    """A cluster of two nodes with one CPU each, in processes of their own."""
    from ray.cluster_utils import Cluster

    environment = {"RAY_AUTH_MODE": "disabled", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25"}
    os.environ |= environment | {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "3"}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.second = cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


class Run:
    """One run of the script, which may take several drivers."""

    def __init__(self, nodes, streets, folder, *more):
        self.results = folder / "results"
        self._command = [
            *(sys.executable, str(SCRIPT), "--data", str(streets), "--results", str(self.results), "--name", "run"),
            *("--data.crop", "64", "--train.steps", str(STEPS), "--train.batch", "4", "--train.workers", "2"),
            *("--train.log_every", "1", "--train.val_every", "20", "--train.checkpoint_every", "3"),
            *("--train.max_failures", "20", "--optim.lr", "1e-3", "--optim.warmup_steps", "2", "--train.ema", "0.9"),
            *more,
        ]
        self._environment = os.environ | {"RAY_ADDRESS": nodes.address}
        self.folder = self.results / "run"
        self.log = folder / "log"
        self.process = None

    def start(self, *more):
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [*self._command, *more], env=self._environment, stdout=log, stderr=subprocess.STDOUT
            )

    def wait(self):
        code = self.process.wait(WAIT_S)
        assert code == 0, self.log.read_text()[-3000:]

    def step(self):
        journal = Journal(self.folder)
        return journal.last_step() if journal.path.exists() else 0

    def reaches(self, step):
        until = time.monotonic() + WAIT_S
        while self.step() < step:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < until, self.log.read_text()[-3000:]
            time.sleep(0.02)

    def workers(self):
        """The processes of this run's ranks."""
        return [
            one
            for one in psutil.process_iter(["name", "cmdline"])
            if "RayTrainWorker" in " ".join(one.info["cmdline"] or [])
        ]

    @property
    def losses(self):
        found = [
            (record["step"], record["values"]["train/loss"])
            for record in Journal(self.folder).records()
            if record["kind"] == "metrics"
        ]
        assert [step for step, _ in found] == list(range(1, STEPS + 1))
        return found

    @property
    def weights(self):
        last = store.saved(self.folder)[-1]
        assert last.step == STEPS
        return {
            (kind, name): tensor
            for kind in (False, True)
            for name, tensor in checkpoint.load_weights(last.folder, live=kind).items()
        }

    def steps_in_mlflow(self):
        state = json.loads((self.folder / "uploaded.json").read_text())
        client = MlflowClient(f"sqlite:///{self.results.parent}/mlflow.db")
        runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
        assert [run.info.run_id for run in runs] == [state["run_id"]]
        assert runs[0].info.status == "FINISHED"
        return [metric.step for metric in client.get_metric_history(state["run_id"], "train/loss")]


@pytest.fixture(scope="module")
def undisturbed(nodes, streets, tmp_path_factory):
    run = Run(nodes, streets, tmp_path_factory.mktemp("undisturbed"))
    run.start()
    run.wait()
    return run


def kill_worker(run, nodes, rng):
    os.kill(rng.choice(run.workers()).pid, signal.SIGKILL)


def kill_driver(run, nodes, rng):
    run.process.kill()
    run.process.wait()
    run.start("--resume", "auto")


def kill_node(run, nodes, rng):
    nodes.remove_node(nodes.second, allow_graceful=False)
    nodes.second = nodes.add_node(num_cpus=1)


def assert_same(run, undisturbed):
    assert run.losses == undisturbed.losses
    ours, theirs = run.weights, undisturbed.weights
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert run.steps_in_mlflow() == list(range(1, STEPS + 1))


def test_a_run_killed_at_ten_moments_ends_as_if_nothing_had_been(nodes, streets, undisturbed, tmp_path):
    rng = random.Random(4)
    run = Run(nodes, streets, tmp_path)
    run.start()
    kills = [kill_worker] * 4 + [kill_driver] * 3 + [kill_node] * 3
    rng.shuffle(kills)
    for number, kill in enumerate(kills):
        run.reaches(1 + number * (STEPS - 2) // len(kills))
        time.sleep(rng.random())
        kill(run, nodes, rng)
        print(f"{kill.__name__} after step {run.step()}")
    run.wait()
    assert_same(run, undisturbed)
