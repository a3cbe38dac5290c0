"""Jobs on a cluster with a token: they are stopped in order, and nobody without it gets in anywhere."""

import os
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from mlflow.tracking import MlflowClient

from segray.tracking.journal import Journal
from segray.training import checkpoint_store

from .conftest import BIN, ROOT, end, head_shell, start_head, until

pytestmark = pytest.mark.slow

RAYS = (  # that live as long as the cluster, on the node of its drivers
    "JobSupervisor",
    "_StatsActor",
    "_AutoscalingCoordinatorActor",
    "ActorLocationTracker",
    "TrainStateActor",
    "_UsageCollectionActor",
)
PASSWORD, ACCOUNT, KEY = secrets.token_hex(12), secrets.token_hex(12), secrets.token_hex(12)


@pytest.fixture(scope="module")
def head(tmp_path_factory, mlflow_server):
    """A head with a token, and secrets in the environment that its jobs inherit."""
    folder = tmp_path_factory.mktemp("c")
    uri = mlflow_server.replace("//", f"//someone:{PASSWORD}@")
    planted = {"AWS_SECRET_ACCESS_KEY": KEY, "AWS_ACCESS_KEY_ID": "planted", "MLFLOW_TRACKING_URI": uri}
    planted |= {"MLFLOW_TRACKING_USERNAME": "segray", "MLFLOW_TRACKING_PASSWORD": ACCOUNT}
    shell = head_shell(folder, **planted)
    found = start_head(folder, shell, "--num-cpus", 2, "--object-store-memory", 200_000_000)
    yield found
    for process in found.started:
        process.kill()
    end(found.process, 5)


def actors(head):
    """The actors that are alive, but for those that Ray itself keeps for all jobs."""
    found = head.asked("/api/v0/actors?limit=1000&detail=true")
    return [one["class_name"] for one in found if one["state"] == "ALIVE" and one["class_name"] not in RAYS]


def running(head):
    """The tasks that are at work."""
    found = head.asked("/api/v0/tasks?limit=1000&detail=true")
    return [one["func_or_class_name"] for one in found if one["state"] == "RUNNING" and one["type"] == "NORMAL_TASK"]


def job_of(process):
    """The id of a job that was submitted."""
    for line in process.stdout:
        if "submitted successfully" in line:
            return line.split("'")[1]
    raise AssertionError("it was not submitted")


def stop(head, process):
    """Stops a job, and returns the seconds until it had ended."""
    began = time.monotonic()
    number = job_of(process)
    done = head.run(BIN / "ray", "job", "stop", number)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "was stopped" in done.stdout + done.stderr
    process.communicate(timeout=60)
    return time.monotonic() - began


def training(streets, place, *more):
    words = ["python", "pipelines/train.py", "--data.root", streets, "--results", place / "results", "--name", "run"]
    words += [
        "--tracking.uri",
        f"sqlite:///{place}/mlflow.db",
        "--data.crop",
        64,
        "--train.batch",
        4,
        "--train.workers",
        2,
        "--train.log_every",
        1,
    ]
    return [*words, "--train.val_every", 500, "--optim.warmup_steps", 1, *more]


def states(place):
    client = MlflowClient(f"sqlite:///{place}/mlflow.db")
    experiments = [one.experiment_id for one in client.search_experiments()]
    return sorted(run.info.status for run in client.search_runs(experiments))


def reaches(folder, step):
    journal = Journal(folder)
    until(lambda: journal.path.exists() and journal.last_step() >= step, f"step {step}")


def test_a_training_job_that_is_stopped_ends_in_order_and_goes_on(head, streets, tmp_path):
    job = head.submit(*training(streets, tmp_path, "--train.steps", 1000))
    run = tmp_path / "results/run"
    reaches(run, 5)
    took = stop(head, job)
    last = checkpoint_store.list_checkpoints(run)[-1].step
    steps = [one["step"] for one in Journal(run).records() if one["kind"] == "metrics"]
    assert steps in (list(range(1, last)), list(range(1, last + 1)))  # the last report may wait in the checkpoint
    assert states(tmp_path) == ["KILLED"]
    assert actors(head) == []
    print(f"train: stopped at step {last} after {took:.1f} s")
    more = ["--train.steps", 1000, "--resume", "auto"]
    job = head.submit(*training(streets, tmp_path, *more))
    reaches(run, last + 3)
    stop(head, job)
    steps = [one["step"] for one in Journal(run).records() if one["kind"] == "metrics"]
    assert steps == list(range(1, steps[-1] + 1))
    assert actors(head) == []


def test_a_sweep_that_is_stopped_ends_in_order(head, streets, tmp_path):
    words = [str(word) for word in training(streets, tmp_path, "--train.steps", 1000, "--train.workers", 1)]
    words[1] = "pipelines/tune.py"
    job = head.submit(*words, "--tune.trials", 4, "--tune.space", '{"optim.lr": {"choice": [1e-4, 1e-3]}}')
    reaches(tmp_path / "results/run/trial-000", 3)
    took = stop(head, job)
    trials = sorted((tmp_path / "results/run").glob("trial-*"))
    begun = [trial for trial in trials if Journal(trial).last_step()]
    assert trials[0] in begun
    for trial in begun:
        assert checkpoint_store.list_checkpoints(trial)[-1].step - Journal(trial).last_step() in (0, 1)
    assert set(states(tmp_path)) == {"KILLED"}
    assert actors(head) == []
    print(f"tune: {len(begun)} of {len(trials)} trials at work, stopped after {took:.1f} s, each with its checkpoint")


@pytest.fixture(scope="module")
def model(head, streets, tmp_path_factory):
    """A checkpoint."""
    place = tmp_path_factory.mktemp("trained")
    job = head.submit(*training(streets, place, "--train.steps", 2, "--train.val_every", 2))
    said, _ = job.communicate(timeout=200)
    assert job.returncode == 0, said
    return checkpoint_store.list_checkpoints(place / "results/run")[-1].folder


def test_an_evaluating_job_that_is_stopped_leaves_nothing_at_work(head, streets, model, tmp_path):
    words = ["python", "pipelines/evaluate.py", "--model", model, "--data", streets, "--split", "train"]
    words += ["--tracking.uri", f"sqlite:///{tmp_path}/mlflow.db", "--eval.scales", "[4, 4, 4, 4, 4, 4]"]
    job = head.submit(*words)
    until(lambda: "_count_share" in running(head), "it counts")
    assert stop(head, job) < 30
    assert running(head) == []
    assert actors(head) == []


def test_a_predicting_job_that_is_stopped_leaves_no_actor_and_goes_on(head, streets, model, tmp_path):
    words = ["python", "pipelines/predict.py", "--model", model, "--source", streets, "--out", tmp_path / "out"]
    job = head.submit(*words, "--eval.scales", "[4, 4]")
    until(lambda: list((tmp_path / "out").glob("**/*.png")), "the first masks")
    stop(head, job)
    assert actors(head) == []
    left = len(list((tmp_path / "out").glob("**/*.png")))
    job = head.submit(*words, "--eval.scales", "[4, 4]")
    said, _ = job.communicate(timeout=300)
    assert job.returncode == 0, said
    assert left < len(list((tmp_path / "out").glob("**/*.png"))) == 41 + 7 + 5


def test_ctrl_c_in_a_terminal_ends_a_run_of_its_own_cluster_in_order(streets, tmp_path):
    words = [sys.executable, *map(str, training(streets, tmp_path, "--train.steps", 1000)[1:])]
    alone = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "PYTHONPATH")}
    process = subprocess.Popen(
        words, cwd=ROOT, env=alone, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    run = tmp_path / "results/run"
    reaches(run, 5)
    os.killpg(process.pid, 2)  # as a terminal does: the processes of its cluster that are in the group hear of it too
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    last = checkpoint_store.list_checkpoints(run)[-1].step
    assert f"was stopped at step {last}" in said
    assert states(tmp_path) == ["KILLED"]


def test_nobody_gets_in_without_the_token_and_with_it_everybody_does(head):
    client = f"import ray; ray.init('ray://127.0.0.1:{head.client_port}'); print(ray.get(ray.put(7)))"
    driver = f"import ray; ray.init('{head.address}'); print(ray.get(ray.put(7)))"
    entries = {
        "status": [BIN / "ray", "status", "--address", head.address],
        "job list": [BIN / "ray", "job", "list"],
        "job submit": [BIN / "ray", "job", "submit", "--", "true"],
        "state": [BIN / "ray", "list", "nodes"],
        "client": [sys.executable, "-c", client],
        "driver": [sys.executable, "-c", driver],
    }
    known = head.shell
    stranger = {name: value for name, value in known.items() if name != "RAY_AUTH_TOKEN"} | {"HOME": "/nonexistent"}
    shells = {
        "none": stranger | {"RAY_AUTH_MODE": "disabled"},
        "missing": stranger,
        "another": known | {"RAY_AUTH_TOKEN": "f" * 64},
    }
    with ThreadPoolExecutor(4) as pool:  # some of them wait for long before they give up
        tried = {
            (name, who): pool.submit(head.run, *command, shell=shell, seconds=200)
            for name, command in entries.items()
            for who, shell in {"known": known, **shells}.items()
        }
    for (name, who), future in tried.items():
        done = future.result()
        assert (done.returncode == 0) == (who == "known"), (name, who, done.stdout + done.stderr)
        assert known["RAY_AUTH_TOKEN"] not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "path", ["/api/version", "/api/jobs/", "/nodes?view=summary", "/api/v0/actors", "/logical/actors"]
)
def test_the_dashboard_answers_nobody_without_the_token(head, path):
    url = head.shell["RAY_API_SERVER_ADDRESS"] + path

    def status(**headers):
        try:
            return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10).status
        except urllib.error.HTTPError as error:
            return error.code

    assert status() == 401
    assert status(Authorization="Bearer " + "f" * 64) in (401, 403)
    assert status(Authorization=f"Bearer {head.shell['RAY_AUTH_TOKEN']}") == 200


SWEEP = ["--tune.space", '{"optim.lr": {"choice": [1e-4, 1e-3]}}', "--tune.trials", 2, "--train.workers", 1]


def test_no_secret_is_written_down_anywhere(head, streets, mlflow_server, tmp_path, tmp_path_factory):
    for command, more in (("train", []), ("tune", SWEEP)):
        place = tmp_path / command
        place.mkdir()
        words = training(streets, place, "--train.steps", 4, "--train.val_every", 2, *more)
        words[1] = f"pipelines/{command}.py"
        at = words.index("--tracking.uri")
        job = head.submit(*words[:at], *words[at + 2 :], "--json", place / "result.json")  # MLflow as the head knows it
        said, _ = job.communicate(timeout=200)
        assert job.returncode == 0, said
        assert "someone:***@" in (place / "result.json").read_text()
        (place / "said").write_text(said)
    client = MlflowClient(mlflow_server)
    runs = client.search_runs([client.get_experiment_by_name("segray").experiment_id])
    assert len(runs) == 1 + 1 + 2
    (tmp_path / "runs").write_text("\n".join(str(run.to_dictionary()) for run in runs))
    places = [head.folder, tmp_path, tmp_path_factory.getbasetemp() / "mlflow0"]
    assert all(place.exists() for place in places)
    for secret in (PASSWORD, ACCOUNT, KEY, head.shell["RAY_AUTH_TOKEN"]):
        found = subprocess.run(["grep", "-rlaF", secret, *places], capture_output=True, text=True, check=False)
        assert found.stdout == ""
    planted = tmp_path / "planted"
    planted.write_text(KEY)
    found = subprocess.run(["grep", "-rlaF", KEY, *places], capture_output=True, text=True, check=False)
    assert found.stdout.split() == [str(planted)]  # so would another be found
