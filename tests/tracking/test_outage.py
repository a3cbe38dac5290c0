"""An MLflow server that goes away in mid-run, for a while and for good: training never waits, and nothing is lost."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from mlflow.tracking import MlflowClient

from segray.tracking.journal import Journal
from segray.training.reporting import JournalCallback

pytestmark = pytest.mark.slow

SCRIPTS = Path(__file__).parents[2] / "pipelines"
STEPS = 200
SPY = """
import sys
from segray.training.losses.build import cross_entropy

def loss(outputs, batch, *, ignore_id, normaliser=None):
    with open("FILE", "w") as file:
        file.write(" ".join(sorted(name for name in sys.modules if "mlflow" in name or "tracking" in name)))
    return cross_entropy(outputs, batch, ignore_id=ignore_id, normaliser=normaliser)
"""


class Run:
    """A run of the script on a cluster of its own, that tracks on a server."""

    def __init__(self, folder, uri):
        (folder / "spy.py").write_text(SPY.replace("FILE", str(folder / "modules")))
        self.folder, self.log, self.modules = folder / "results" / "run", folder / "log", folder / "modules"
        self._environment = os.environ | {
            "PYTHONPATH": str(folder),
            "RAY_AUTH_MODE": "disabled",
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        }
        self._environment.pop("RAY_ADDRESS", None)
        demo = ["--format", "demo", "--out", str(folder / "data")]
        subprocess.run([sys.executable, SCRIPTS / "prepare.py", *demo], env=self._environment, check=True)
        command = [
            *(sys.executable, SCRIPTS / "train.py", "--data", folder / "data", "--results", folder / "results"),
            *("--name", "run", "--tracking.uri", uri, "--loss.terms", "spy:loss", "--data.crop", "64"),
            *("--train.steps", STEPS, "--train.batch", "4", "--train.log_every", "1", "--train.val_every", STEPS),
            *("--optim.warmup_steps", "10", "--optim.lr", "1e-3"),
        ]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                list(map(str, command)), env=self._environment, stdout=log, stderr=subprocess.STDOUT
            )

    def reaches(self, step):
        until = time.monotonic() + 120
        while not self.folder.exists() or Journal(self.folder).last_step() < step:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < until
            time.sleep(0.1)

    def wait(self):
        assert self.process.wait(300) == 0, self.log.read_text()[-3000:]

    def sync(self):
        command = [Path(sys.executable).with_name("segray"), "tracking", "sync", self.folder]
        subprocess.run(command, env=self._environment, check=True)


def assert_all_there(run, uri):
    client = MlflowClient(uri)
    (found,) = client.search_runs([one.experiment_id for one in client.search_experiments()])
    assert found.info.status == "FINISHED"
    steps = [metric.step for metric in client.get_metric_history(found.info.run_id, "train/loss")]
    assert sorted(steps) == list(range(1, STEPS + 1))
    assert client.search_model_versions("name = 'segray'")
    assert run.modules.read_text().split() == ["segray.tracking", "segray.tracking.journal"]


def test_a_server_that_is_away_for_half_a_minute_has_everything_in_the_end(serve, tmp_path):
    server, uri = serve()
    run = Run(tmp_path, uri)
    run.reaches(20)
    server.end()
    before = Journal(run.folder).last_step()
    time.sleep(30)
    made = Journal(run.folder).last_step() - before
    serve()
    run.wait()
    print(f"{made} steps in the 30 s without a server")
    assert made > 20
    assert_all_there(run, uri)


def test_what_a_server_that_died_for_good_lacks_is_synchronised_later(serve, tmp_path):
    server, uri = serve()
    run = Run(tmp_path, uri)
    run.reaches(20)
    server.end()
    run.wait()
    assert f"segray tracking sync {run.folder}" in run.log.read_text()
    serve()
    run.sync()
    run.sync()
    assert_all_there(run, uri)


def test_the_controllers_callback_takes_under_five_milliseconds(tmp_path):
    values = {f"val/iou/{number}": 0.5 for number in range(170)}
    callback, times = JournalCallback(str(tmp_path)), []
    for step in range(1, 2001):
        begun = time.perf_counter()
        callback.after_report(None, [{"step": step, "recent": [(step - 1, values), (step, values)]}], None)
        times.append(time.perf_counter() - begun)
    slowest = np.quantile(times, 0.99) * 1000
    print(f"99th percentile of the callback: {slowest:.2f} ms, with 170 metrics")
    assert slowest < 5
