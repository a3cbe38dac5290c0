"""Runs whose workers, drivers and nodes are killed: they end as without the failure."""

import contextlib
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from mlflow.tracking import MlflowClient

from segray.models import checkpoint
from segray.tracking.journal import Journal
from segray.training import checkpoint_store

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "pipelines" / "train.py"
STEPS = 40
ROWS = 41  # no multiple of the batch: epochs end within one
WAIT_S = 120


CONVERT = """
import sys
from segray.cluster.connect import connect
from segray.data.convert.convert import convert_dataset
from segray.data.convert.shards import ShardLimits
from segray.data.sources.sample import SourceListing; from segray.data.sources import demo
connect()
samples = demo.demo_samples(splits={"train": int(sys.argv[2]), "val": 7, "test": 5})
listing = SourceListing(samples, demo.demo_classes(), absent_ok=True)
convert_dataset(listing, sys.argv[1], bounds=ShardLimits(group_rows=4))
"""


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "streets"
    subprocess.run([sys.executable, "-c", CONVERT, out, str(ROWS)], check=True)  # this process is to know no cluster
    return out


COUNTING = """
import json
import torch.distributed as dist
from segray.training.losses.build import cross_entropy

def loss(outputs, batch, *, ignore_id, normaliser=None):
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    with open("CALLS", "a") as calls:
        calls.write(json.dumps({"rank": rank, "world": world, "rows": batch["row"].tolist()}) + chr(10))
    return cross_entropy(outputs, batch, ignore_id=ignore_id, normaliser=normaliser)
"""


STANDING = """
import os, time
from segray.training.losses.build import cross_entropy

def loss(outputs, batch, *, ignore_id, normaliser=None):
    while os.path.exists("STAND"):
        time.sleep(0.1)
    return cross_entropy(outputs, batch, ignore_id=ignore_id, normaliser=normaliser)
"""


@pytest.fixture
def calls(nodes):
    """Returns the calls of the loss `counting:loss` so far: rank, of how many, and rows."""
    nodes.calls.unlink(missing_ok=True)
    return lambda: [json.loads(line) for line in nodes.calls.read_text().splitlines()]


def rows_of_steps(calls):
    """The rows of each step in the order of their slots; a step that was made again counts once."""
    made = []
    for world, group in itertools.groupby(calls, lambda call: call["world"]):
        of_ranks = [[] for _ in range(world)]
        for call in group:
            of_ranks[call["rank"]].append(call["rows"])
        steps = [
            [*itertools.chain.from_iterable(parts)] for parts in zip(*of_ranks, strict=False)
        ]  # the last one may have been cut off
        again = max((number for number, rows in enumerate(made) if rows == steps[0]), default=len(made))
        made = made[:again] + steps
    return made


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """A cluster of two nodes with one CPU each, in processes of their own, that find `counting`."""
    from ray.cluster_utils import Cluster

    folder = tmp_path_factory.mktemp("plugins")
    (folder / "counting.py").write_text(COUNTING.replace("CALLS", str(folder / "calls")))
    (folder / "standing.py").write_text(STANDING.replace("STAND", str(folder / "stand")))
    os.environ["PYTHONPATH"] = str(folder)
    environment = {"RAY_AUTH_MODE": "disabled", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25"}
    os.environ |= environment | {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "3"}
    os.environ |= {"RAY_gcs_rpc_server_reconnect_timeout_s": "5"}  # a driver does not wait longer for a lost head
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.second, cluster.calls = cluster.add_node(num_cpus=1), folder / "calls"
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
            *(
                "--train.max_failures",
                "20",
                "--optim.lr",
                "1e-3",
                "--optim.warmup_steps",
                "2",
                "--train.ema_decay",
                "0.9",
            ),
            *more,
        ]
        self.move(nodes.address)
        self.folder = self.results / "run"
        self.log = folder / "log"
        self.process = None

    def move(self, address):
        self._environment = os.environ | {"RAY_ADDRESS": address}

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
        last = checkpoint_store.list_checkpoints(self.folder)[-1]
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


def events(run):
    return [record["text"] for record in Journal(run.folder).records() if record["kind"] == "event"]


def drain(nodes, node):
    script = Path(sys.executable).with_name("ray")
    how = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "test", "--deadline-remaining-seconds", "15"]
    subprocess.run([script, "drain-node", "--address", nodes.address, "--node-id", node.node_id, *how], check=True)


def test_a_preemption_loses_and_repeats_no_step(nodes, streets, undisturbed, tmp_path, calls):
    run = Run(nodes, streets, tmp_path, "--loss.terms", "counting:loss")
    run.start()
    run.reaches(8)
    spare = nodes.add_node(num_cpus=1)
    before = time.monotonic()
    drain(nodes, nodes.second)
    run.wait()
    (said,) = events(run)
    print(f"{said} Noticed, saved and ended {time.monotonic() - before:.1f} s after the notice of 15 s.")
    nodes.remove_node(nodes.second, allow_graceful=False)
    nodes.second = spare
    stopped = int(said.rsplit(" ", 1)[1].rstrip("."))
    assert 8 <= stopped < STEPS
    assert sum(len(call["rows"]) for call in calls()) == STEPS * 4
    assert_same(run, undisturbed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_saves_its_step_and_resumes(nodes, streets, undisturbed, tmp_path, calls, number):
    run = Run(nodes, streets, tmp_path, "--loss.terms", "counting:loss")
    run.start()
    run.reaches(8)
    before = time.monotonic()
    run.process.send_signal(number)
    assert run.process.wait(60) == 130
    print(f"stopped after {time.monotonic() - before:.1f} s")
    last = checkpoint_store.list_checkpoints(run.folder)[-1].step
    assert f"was stopped at step {last}; resume it with --resume {run.folder}" in run.log.read_text()
    assert run.step() in (last - 1, last)  # the last report may wait in the checkpoint
    client = MlflowClient(f"sqlite:///{run.results.parent}/mlflow.db")
    assert [found.info.status for found in client.search_runs(["1"])] == ["KILLED"]
    run.start("--resume", "auto")
    run.wait()
    assert sum(len(call["rows"]) for call in calls()) == STEPS * 4  # no step is lost or made twice
    assert_same(run, undisturbed)


def test_a_second_signal_ends_a_run_immediately(nodes, streets, tmp_path):
    stand = nodes.calls.with_name("stand")
    run = Run(nodes, streets, tmp_path, "--loss.terms", "standing:loss")
    run.start()
    run.reaches(8)
    stand.touch()  # no step ends any more
    try:
        time.sleep(1)
        run.process.send_signal(signal.SIGINT)
        time.sleep(5)
        assert run.process.poll() is None
        run.process.send_signal(signal.SIGINT)
        assert run.process.wait(30) == 130
    finally:
        stand.unlink()
    last = checkpoint_store.list_checkpoints(run.folder)[-1].step
    assert f"was stopped at step {last}" in run.log.read_text()
    assert "Traceback" not in run.log.read_text()


def test_an_elastic_run_makes_each_batch_once(nodes, streets, tmp_path, calls):
    more = [
        "--train.min_workers",
        "1",
        "--train.resize_interval_s",
        "2",
        "--train.steps",
        "120",
        "--loss.terms",
        "counting:loss",
    ]
    run = Run(nodes, streets, tmp_path, *more)
    run.start()
    run.reaches(6)
    nodes.remove_node(nodes.second, allow_graceful=False)
    gone = run.step()
    run.reaches(gone + 10)
    nodes.second = nodes.add_node(num_cpus=1)
    run.wait()
    sizes = [len(call["rows"]) for call in calls()]
    print(f"images a call: {[(size, len(list(group))) for size, group in itertools.groupby(sizes)]}")
    assert [size for size, _ in itertools.groupby(sizes)] == [2, 4, 2]
    rows = [*itertools.chain.from_iterable(rows_of_steps(calls()))]
    assert len(rows) == 120 * 4
    epochs = [sorted(rows[start : start + ROWS]) for start in range(0, len(rows) - ROWS + 1, ROWS)]
    assert epochs == [list(range(ROWS))] * (120 * 4 // ROWS)
    assert run.steps_in_mlflow() == list(range(1, 121))


def test_a_hanging_rank_is_reported_with_its_step_and_replaced(nodes, streets, undisturbed, tmp_path):
    run = Run(nodes, streets, tmp_path, "--train.hang_timeout_s", "6")
    run.start()
    run.reaches(10)
    victim = run.workers()[1]
    victim.suspend()
    step = run.step()
    run.wait()
    named = [line for line in events(run) if "made no progress" in line]
    print(*events(run), sep="\n")
    assert len(named) == 1
    assert f"process {victim.pid} " in named[0]
    assert re.search(r"rank [01] \(process \d+ on node \w+, step (\d+), phase .*\) made no progress for 6 s", named[0])
    assert int(re.search(r"step (\d+), phase", named[0])[1]) in range(step, step + 4)
    assert_same(run, undisturbed)


def assert_same(run, undisturbed):
    assert run.losses == undisturbed.losses
    ours, theirs = run.weights, undisturbed.weights
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert run.steps_in_mlflow() == list(range(1, STEPS + 1))


def test_a_run_killed_at_ten_moments_equals_an_undisturbed_run(nodes, streets, undisturbed, tmp_path):
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


CLUSTER = """
import time
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1)
print("address", cluster.address, flush=True)
time.sleep(600)
"""


@contextlib.contextmanager
def cluster_to_lose():
    """The address of a cluster whose processes are a group of their own, all killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield next(line.split()[1] for line in process.stdout if line.startswith("address"))
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_the_same_command_resumes_on_another_cluster_after_the_head_is_lost(nodes, streets, undisturbed, tmp_path):
    """The last test here: the other tests' cluster is gone."""
    nodes.shutdown()
    run = Run(nodes, streets, tmp_path)
    with cluster_to_lose() as address:
        run.move(address)
        run.start()
        run.reaches(10)
    assert run.process.wait(WAIT_S) != 0
    with cluster_to_lose() as another:
        run.move(another)
        run.start("--resume", "auto")
        run.wait()
    assert_same(run, undisturbed)
