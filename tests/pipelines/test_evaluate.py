"""`evaluate.py` as a user types it: against another model, in slices, with a report; and with mistakes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from segray.cli import evaluate as evaluate_cli
from segray.cli import main as cli
from segray.core.errors import DataError
from segray.evaluation import evaluate as evaluate_module
from segray.evaluation.report import write as write_module
from segray.models import checkpoint

SCRIPT = Path(__file__).parents[2] / "pipelines" / "evaluate.py"


def command(folder, data, *words):
    return list(map(str, [sys.executable, SCRIPT, "--model", folder, "--data", data, *words]))


@pytest.fixture
def other(folder, tmp_path):
    """The same model, a little off."""
    model = checkpoint.load_model(folder)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    made = tmp_path / "other"
    made.mkdir()
    parts = checkpoint.load_config(folder), checkpoint.load_classes(folder), checkpoint.load_meta(folder)
    checkpoint.snapshot(model, {}, *parts).write(made)
    return made


@pytest.mark.slow
def test_everything_at_once_with_rows_that_cannot_be_read(folder, other, spoilt, tmp_path, ray_cluster):
    environment = os.environ | {"RAY_ADDRESS": ray_cluster, "RAY_AUTH_MODE": "disabled"}
    words = ["--split", "train", "--against", other, "--slice", "size", "--slice", r"last=(\d)$", "--workers", "1"]
    words += ["--group-by", r"ten=(\d)\d$", "--report", tmp_path / "report", "--json", tmp_path / "found.json"]
    done = subprocess.run(
        command(folder, spoilt, *words),
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: 2 rows could not be read and were skipped:\n")
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["rows"], len(found["slices"]["last"])) == (39, 10)
    assert found["against"]["miou"]["ours"] == found["scores"]["miou"]
    assert "(paired bootstrap over 5 groups)" in done.stdout
    assert f"report  {tmp_path}/report/index.html" in done.stdout
    assert "not logged: the store does not have the model's run" in done.stdout
    assert not (tmp_path / "mlflow.db").exists()
    assert {path.name for path in (tmp_path / "report").iterdir()} >= {"index.html", "classes.png", "examples.png"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--split", "dev"], "the dataset has no split 'dev'; it has train, val, test"),
        (["--slice", "city"], "has no column city; it has id, image"),
        (["--slice", "mask"], "column mask of"),
        (["--slice", "a=("], "which is not a valid regular expression"),
        (["--against", "nowhere"], "checkpoint nowhere is not a folder"),
        (["--report", "full"], "report full is not empty; choose another folder"),
        (["--eval.mode", "slide", "--eval.stride", "600"], "eval.stride is 600; expected at most the window size 512"),
        (["--json", "nowhere/x.json"], "expected a file in a writable folder that exists"),
    ],
)
def test_mistakes_are_told_before_anything_is_counted(folder, streets, tmp_path, words, said, monkeypatch, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", command(folder, streets, *words)[1:])
    monkeypatch.setattr(evaluate_module, "_count", lambda _: pytest.fail("counted"))
    with pytest.raises(SystemExit) as ended:
        cli.run("evaluate")
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_other_classes_are_named(folder, streets, tmp_path, monkeypatch, capsys):
    copy = Path(shutil.copytree(folder, tmp_path / "model"))
    classes = json.loads((copy / "classes.json").read_text())
    classes["names"][0] = "lava"
    text = json.dumps(classes)
    meta = json.loads((copy / "meta.json").read_text())
    (copy / "classes.json").write_text(text)
    meta["files"]["classes.json"] = len(text)
    del meta["checksums"]["classes.json"]
    (copy / "meta.json").write_text(json.dumps(meta))
    monkeypatch.setattr(sys, "argv", command(copy, streets)[1:])
    with pytest.raises(SystemExit) as ended:
        cli.run("evaluate")
    assert ended.value.code == 2
    assert "they differ in lava, " in capsys.readouterr().err


def fail(*_):
    raise DataError("no")


@pytest.mark.parametrize(
    ("module", "name"),
    [(evaluate_cli, "evaluate"), (write_module.figures, "plot_examples")],
    ids=["evaluation", "last figure"],
)
def test_an_earlier_report_outlives_a_failure(folder, streets, tmp_path, monkeypatch, capsys, module, name):
    report = tmp_path / "report"
    report.mkdir()
    (report / "index.html").write_text('<!doctype html><meta name="generator" content="segray">the old one')
    (report / "classes.png").write_text("old")
    before = {path.name: path.read_text() for path in report.iterdir()}
    monkeypatch.setattr(module, name, fail)
    monkeypatch.setattr(sys, "argv", command(folder, streets, "--report", report)[1:])
    with pytest.raises(SystemExit):
        cli.run("evaluate")
    assert "no" in capsys.readouterr().err
    assert {path.name: path.read_text() for path in report.iterdir()} == before
