"""The scripts as a user types them: prepare, train, evaluate, on the test session's cluster."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
import torch
from mlflow.tracking import MlflowClient

ROOT = Path(__file__).parents[2]


def run(*words, cwd, **env):
    command = [sys.executable, *map(str, words)]
    return subprocess.run(
        command, cwd=cwd, env=os.environ | env, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture
def on_cluster(ray_cluster):
    return {"RAY_ADDRESS": ray_cluster, "RAY_AUTH_MODE": "disabled"}


@pytest.mark.slow
def test_from_a_folder_of_pictures_to_a_registered_and_evaluated_model(on_cluster, tmp_path):
    prepared = run(ROOT / "pipelines/prepare.py", "--format", "demo", "--out", "data/demo", cwd=tmp_path, **on_cluster)
    assert prepared.returncode == 0, prepared.stderr
    words = ["--config", ROOT / "pipelines/configs/demo.yaml", "--data.crop", "32", "--train.steps", "2"]
    words += ["--optim.warmup_steps", "1", "--train.log_every", "1", "--train.batch", "2", "--json", "result.json"]
    trained = run(ROOT / "pipelines/train.py", *words, cwd=tmp_path, **on_cluster)
    assert trained.returncode == 0, trained.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    last = trained.stdout.rstrip().splitlines()[-1]
    assert last == f"val mIoU {result['scores']['miou']:.4f}"
    assert "2 x cpu worker: 1 threads" in trained.stdout

    # The next command is the one it printed.
    typed = re.search(r"next +python pipelines/evaluate\.py (.*) --split test", trained.stdout)
    assert typed is not None, trained.stdout
    words = [*typed[1].split(), "--split", "val", "--json", "evaluation.json"]
    evaluated = run(ROOT / "pipelines/evaluate.py", *words, cwd=tmp_path, **on_cluster)
    assert evaluated.returncode == 0, evaluated.stderr
    again = json.loads((tmp_path / "evaluation.json").read_text())
    assert again["scores"] == result["scores"]
    assert "Traceback" not in prepared.stderr + trained.stderr + evaluated.stderr


@pytest.fixture
def started(on_cluster, streets, tmp_path):
    """A run without end that has made its first steps; ended, whatever becomes of the test."""
    words = ["--config", ROOT / "pipelines/configs/demo.yaml", "--data.root", streets, "--data.crop", 32, "--name", "x"]
    command = [sys.executable, ROOT / "pipelines/train.py", *words, "--train.log_every", 1, "--train.steps", 5000]
    process = subprocess.Popen(list(map(str, command)), cwd=tmp_path, env=os.environ | on_cluster, stderr=-1, text=True)
    journal = tmp_path / "results/x/journal.jsonl"
    deadline = time.monotonic() + 120
    while not (journal.exists() and '"metrics"' in journal.read_text()):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.2)
    yield process
    process.kill()
    process.communicate()


def test_ctrl_c_ends_a_run_in_order(started, tmp_path):
    started.send_signal(signal.SIGINT)
    _, said = started.communicate(timeout=90)
    assert started.returncode == 130, said
    assert "was stopped at step" in said
    assert "Traceback" not in said
    runs = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").search_runs(["1"])
    assert [run.info.status for run in runs] == ["KILLED"]


@pytest.mark.slow
def test_a_killed_run_gives_the_cluster_back(started):
    assert ray.available_resources()["CPU"] < 2
    started.kill()
    deadline = time.monotonic() + 60
    while ray.available_resources().get("CPU") != 2:
        assert time.monotonic() < deadline, ray.available_resources()
        time.sleep(0.5)


@pytest.mark.slow
def test_a_damaged_shard_is_one_message(on_cluster, streets, tmp_path):
    copy = shutil.copytree(streets, tmp_path / "copy")
    for shard in (copy / "train").iterdir():
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 0xFF
        shard.write_bytes(content)
    words = ["--config", ROOT / "pipelines/configs/demo.yaml", "--data.root", copy, "--data.crop", 32]
    ended = run(ROOT / "pipelines/train.py", *words, cwd=tmp_path, **on_cluster)
    assert ended.returncode == 2, ended.stderr
    assert "copy/train/part-0000" in ended.stderr
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert list((tmp_path / "results").iterdir()) == []


def test_platform_is_the_standard_library_and_no_script_bears_a_library_name():
    assert not (ROOT / "platform/__init__.py").exists()
    found = run("-c", "import platform, uuid; print(platform.__file__); platform.system()", cwd=ROOT)
    assert found.returncode == 0
    assert str(ROOT) not in found.stdout
    names = {script.stem for script in (ROOT / "pipelines").glob("*.py")}
    assert not names & {"ray", "mlflow", "torch", "numpy", "pyarrow", "albumentations", "platform"}


@pytest.mark.slow
def test_the_benchmark_of_the_model_needs_torch_and_no_cluster(tmp_path):
    words = ["model", "--size", 64, "--classes", 3, "--turns", 2, "--json", tmp_path / "rows.json"]
    code = (
        "import atexit, sys; from benchmarks.main import main\n"
        "heavy = {'ray', 'mlflow', 'cv2', 'albumentations', 'segray.data'}\n"
        "atexit.register(lambda: print('imported', sorted(heavy & set(sys.modules))))\n"
        "main()"
    )
    done = run("-c", code, *words, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "imported []"
    found = json.loads((tmp_path / "rows.json").read_text())
    measured = {(row["measure"], row["peer"]) for row in found["rows"]}
    assert measured == {(measure, "transformers") for measure in ("inference", "train_step", "train_memory")}
    assert all(row["ratio"] == row["theirs"] / row["ours"] for row in found["rows"])
    assert found["machine"]["torch"] == torch.__version__


def test_importing_the_library_does_nothing():
    code = (
        "import segray.config, segray.models.build, segray.inference.predictor, sys; "
        "assert not {'ray', 'mlflow'} & set(sys.modules)"
    )
    found = run("-c", code, cwd=ROOT, PYTHONPATH=str(ROOT / "platform"))
    assert found.returncode == 0, found.stderr


@pytest.mark.slow
def test_the_benchmark_of_the_ingest_compares_and_writes_rows(streets, tmp_path):
    small = ["--rows", 60, "--images", 48, "--turns", 1, "--crop", 64, "--batch", 8, "--tenfold"]
    words = ["ingest", "--data", streets, *small, "--json", tmp_path / "rows.json"]
    done = run(ROOT / "pipelines/benchmark.py", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "rows.json").read_text())
    measured = [(row["measure"], row["peer"]) for row in found["rows"]]
    assert measured == [
        ("ingest_images", "dataloader"),
        ("ingest_images", "bare_loop"),
        ("ingest_first_batch", "dataloader"),
        ("ingest_memory", "dataloader"),
        ("ingest_memory_tenfold", "a tenth of the rows"),
        ("ingest_store_tenfold", "a tenth of the rows"),
    ]
    for row in found["rows"]:
        better = row["ours"] / row["theirs"] if row["unit"] == "images/s" else row["theirs"] / row["ours"]
        assert row["ratio"] == pytest.approx(better)
    assert found["case"]["rows"] == 60


@pytest.mark.slow
def test_the_benchmark_of_training_compares_and_writes_rows(streets, tmp_path):
    words = ["train", "--data", streets, "--data.crop", 32, "--train.batch", 2, "--steps", 2, "--turns", 1]
    done = run(ROOT / "pipelines/benchmark.py", *words, "--json", tmp_path / "rows.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    peers = ["bare_loop", "hf_trainer"]
    assert [(row["measure"], row["peer"]) for row in rows] == [("train_images", peer) for peer in peers]
    assert "step time: " in done.stdout
    assert "Traceback" not in done.stderr
