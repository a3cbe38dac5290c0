"""A real autoscaler on this machine: nodes come for a job and go after it, are killed and drained, runs go on."""

import itertools
import json
import time
from contextlib import contextmanager

import psutil
import pytest
from mlflow.tracking import MlflowClient

from segray.tracking.journal import Journal

from .conftest import BIN, WORKERS, raylets, until

pytestmark = pytest.mark.slow

STEPS = 60


class Run:
    """A job that trains, and what it has left so far."""

    def __init__(self, head, place, streets, tracking, *more, steps=STEPS):
        self.head, self.folder, self.last = head, place / "results/run", steps
        words = ["python", "pipelines/train.py", "--data.root", streets, "--results", place / "results"]
        words += ["--tracking.uri", tracking, "--tracking.experiment", place.name, "--name", "run", "--data.crop", 64]
        words += ["--train.steps", steps, "--train.batch", 6, "--train.workers", 2, "--train.device", "cuda"]
        words += ["--train.log_every", 1, "--train.val_every", 30, "--train.checkpoint_every", 5]
        words += ["--train.max_failures", 5, "--optim.warmup_steps", 2, *more]
        self.began = time.monotonic()
        self.tracking, self.experiment = tracking, place.name
        self.job = head.submit(*words)

    def records(self, kind):
        if not (self.folder / "journal.jsonl").exists():
            assert self.job.poll() is None, self.job.stdout.read()
            return []
        return [record for record in Journal(self.folder).records() if record["kind"] == kind]

    def steps(self):
        return [record["step"] for record in self.records("metrics")]

    def reaches(self, step):
        until(lambda: max(self.steps(), default=0) >= step, f"step {step}", 240)

    def wait(self):
        said, _ = self.job.communicate(timeout=400)
        assert self.job.returncode == 0, said
        assert self.steps() == list(range(1, self.last + 1))  # each once
        client = MlflowClient(self.tracking)
        (run,) = client.search_runs([client.get_experiment_by_name(self.experiment).experiment_id])
        assert run.info.status == "FINISHED"
        return said

    @property
    def passed(self):
        return time.monotonic() - self.began


def drain(head, node_id, seconds):
    how = [
        "--reason",
        "DRAIN_NODE_REASON_PREEMPTION",
        "--reason-message",
        "spot",
        "--deadline-remaining-seconds",
        seconds,
    ]
    done = head.run(BIN / "ray", "drain-node", "--address", head.address, "--node-id", node_id, *how)
    assert done.returncode == 0, done.stdout + done.stderr


def kill(node_id):
    (raylet,) = raylets(node_id)
    raylet.kill()


def test_nodes_come_for_a_job_and_go_after_it(autoscaled, streets, mlflow_server, tmp_path):
    assert autoscaled.nodes() == []
    run = Run(autoscaled, tmp_path, streets, mlflow_server)
    until(lambda: len(autoscaled.nodes()) == 2, "two nodes are started")
    nodes_s = run.passed
    run.reaches(1)
    step_s = run.passed
    run.wait()
    over = time.monotonic()
    until(lambda: autoscaled.nodes() == [], "the nodes are gone")
    print(f"2 nodes after {nodes_s:.0f} s, first step after {step_s:.0f} s, ", end="")
    print(f"end after {over - run.began:.0f} s, no node {time.monotonic() - over:.0f} s later")


def test_a_node_that_is_killed_is_replaced_and_the_run_goes_on(autoscaled, streets, mlflow_server, tmp_path):
    run = Run(autoscaled, tmp_path, streets, mlflow_server)
    run.reaches(12)
    first = autoscaled.nodes()
    kill(first[0])
    killed = time.monotonic()
    until(lambda: set(autoscaled.nodes()) - set(first), "another node")
    replaced_s, before = time.monotonic() - killed, max(run.steps())
    run.reaches(before + 1)
    print(f"killed: another node after {replaced_s:.0f} s, a new step after {time.monotonic() - killed:.0f} s")
    run.wait()
    assert first[0] not in autoscaled.nodes()
    assert run.records("event")  # the run had noticed


def test_a_drained_node_leaves_a_checkpoint_in_time_and_is_replaced(autoscaled, streets, mlflow_server, tmp_path):
    run = Run(autoscaled, tmp_path, streets, mlflow_server)
    run.reaches(12)
    first = autoscaled.nodes()
    drained = time.monotonic()
    drain(autoscaled, first[0], 20)
    until(lambda: run.records("event"), "the run hears of it", 20)
    (event,) = run.records("event")
    saved_s = time.monotonic() - drained
    stopped = int(event["text"].rsplit(" ", 1)[1].rstrip("."))
    assert (run.folder / f"step-{stopped:06d}" / "meta.json").exists()
    until(lambda: max(run.steps()) > stopped, "the run goes on")
    print(f"drained: stopped at step {stopped} with its checkpoint after {saved_s:.1f} of 20 s, ", end="")
    print(f"a new step after {time.monotonic() - drained:.0f} s")
    run.wait()


def sizes(run):
    """How many workers the run had, one after another."""
    values = [int(record["values"]["system/workers"]) for record in run.records("metrics")]
    return [size for size, _ in itertools.groupby(values)]


@contextmanager
def none_to_be_had(head):
    """Has the autoscaler start nothing, as a cloud without machines does."""
    monitor = next(
        one for one in psutil.Process(head.process.pid).children() if "monitor.py" in " ".join(one.cmdline())
    )
    monitor.suspend()
    try:
        yield
    finally:
        monitor.resume()


def test_an_elastic_run_shrinks_and_grows(autoscaled, streets, mlflow_server, tmp_path):
    more = ["--train.workers", WORKERS, "--train.min_workers", 1, "--train.resize_interval_s", 2]
    run = Run(autoscaled, tmp_path, streets, mlflow_server, *more, steps=200)
    until(lambda: sizes(run)[-1:] == [WORKERS], "it has grown to all nodes", 240)
    grown_s = run.passed
    run.reaches(10)
    with none_to_be_had(autoscaled):
        kill(autoscaled.nodes()[0])
        killed = time.monotonic()
        until(lambda: sizes(run)[-1] < WORKERS, "it goes on with fewer", 120)
        shrunk_s = time.monotonic() - killed
    until(lambda: sizes(run)[-1] == WORKERS, "it has grown again", 240)
    print(
        f"elastic: {WORKERS} workers after {grown_s:.0f} s; one killed: fewer continue after {shrunk_s:.0f} s, ", end=""
    )
    print(f"{WORKERS} again after {time.monotonic() - killed:.0f} s; sizes {sizes(run)}")
    run.wait()
    assert {WORKERS - 1, WORKERS} <= set(sizes(run))


def test_a_sweep_over_the_variants_scales_with_its_trials(autoscaled, streets, mlflow_server, tmp_path):
    until(lambda: autoscaled.nodes() == [], "the nodes of the last job are gone")
    space = {"model.variant": {"choice": [f"b{number}" for number in range(6)]}}
    words = ["python", "pipelines/tune.py", "--data.root", streets, "--results", tmp_path / "results", "--name", "six"]
    words += ["--tracking.uri", mlflow_server, "--tune.space", json.dumps(space), "--tune.search", "grid"]
    words += ["--tune.scheduler", "none", "--train.steps", 2, "--train.val_every", 2, "--train.batch", 2]
    words += [
        "--optim.warmup_steps",
        1,
        "--data.crop",
        32,
        "--train.device",
        "cuda",
        "--json",
        tmp_path / "result.json",
    ]
    began = time.monotonic()
    job = autoscaled.submit(*words)
    most = 0
    while job.poll() is None:
        assert time.monotonic() - began < 500
        most = max(most, len(autoscaled.nodes()))
    said, _ = job.communicate()
    assert job.returncode == 0, said
    took = time.monotonic() - began
    result = json.loads((tmp_path / "result.json").read_text())
    assert {trial["values"]["model.variant"] for trial in result["trials"]} == set(space["model.variant"]["choice"])
    assert {trial["state"] for trial in result["trials"]} == {"finished"}
    assert most == WORKERS
    gone_s = until(lambda: autoscaled.nodes() == [], "the nodes are gone")
    print(f"sweep: 6 trials in {took:.0f} s on up to {most} nodes, no node {gone_s:.0f} s later")


def test_a_job_that_no_node_could_ever_hold_is_refused_at_once(autoscaled, streets, mlflow_server, tmp_path):
    began = time.monotonic()
    words = ["--data.root", streets, "--results", tmp_path / "results", "--tracking.uri", mlflow_server]
    job = autoscaled.submit("python", "pipelines/train.py", *words, "--train.device", "cuda", "--train.workers", 9)
    said, _ = job.communicate(timeout=120)
    assert job.returncode != 0
    assert "train.workers is 9, with one GPU each; the cluster can hold 3" in said
    assert not (tmp_path / "results").exists()
    print(f"refused after {time.monotonic() - began:.0f} s")


def test_a_file_as_mlflow_store_is_refused_where_nodes_may_come(autoscaled, streets, tmp_path):
    words = ["--data.root", streets, "--results", tmp_path / "results", "--train.device", "cuda"]
    said, _ = autoscaled.submit("python", "pipelines/train.py", *words).communicate(timeout=120)
    assert "mlflow server --backend-store-uri sqlite:///" in said
    assert not (tmp_path / "results").exists()
