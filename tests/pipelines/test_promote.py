"""`promote.py` as a user types it: tried, promoted, refused, forced, undone; and with mistakes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mlflow.tracking import MlflowClient

from segray.cli import main as cli
from segray.core.classes import Classes
from segray.models import checkpoint
from segray.promotion import measure
from segray.tracking.registry import open_checkpoint, register_checkpoint

SCRIPT = Path(__file__).parents[2] / "pipelines" / "promote.py"
LENIENT = ("--promote.max_miou_drop", "1", "--promote.max_class_iou_drop", "1", "--promote.max_latency_ratio", "9")


@pytest.fixture
def store(folder, streets, empty_store, tmp_path, monkeypatch):
    """A registry whose model has two versions, the second a little off; the data; and the command."""
    uri = f"sqlite:///{shutil.copy(empty_store, tmp_path / 'mlflow.db')}"
    client = MlflowClient(uri, uri)
    experiment = client.create_experiment("tests", str(tmp_path / "artifacts"))
    for number in range(2):
        register_checkpoint(
            client, client.create_run(experiment).info.run_id, _other(folder, tmp_path, number), "s", []
        )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measure, "NUM_TIMED_IMAGES", 3)  # the script itself takes as many as it should

    def command(*words):
        return list(map(str, [SCRIPT, "--name", "s", "--tracking.uri", uri, "--data", streets, *words]))

    def run(*words):
        monkeypatch.setattr(sys, "argv", command(*words))
        with pytest.raises(SystemExit) as ended:
            cli.run("promote")
        return ended.value.code

    return SimpleNamespace(client=client, uri=uri, command=command, run=run, experiment=experiment)


def _other(folder, place, number, classes=None):
    model = checkpoint.load_model(folder)
    torch.manual_seed(number)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * number * torch.randn_like(parameter))
    made = place / f"step-{number}"
    made.mkdir()
    settings, meta = checkpoint.load_config(folder), checkpoint.load_meta(folder)
    checkpoint.snapshot(model, {}, settings, classes or checkpoint.load_classes(folder), meta).write(made)
    return made


def aliases(store):
    return {alias: str(version) for alias, version in store.client.get_registered_model("s").aliases.items()}


def served(store):
    with open_checkpoint("models:/s@champion", store.uri) as folder:
        package = folder.parents[1]
        return {path.relative_to(package): path.read_bytes() for path in package.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_promoted_refused_forced_and_undone(store, ray_cluster, tmp_path, capsys):
    assert store.run("--version", 1, "--split", "train") == 0
    assert "no champion to compare with" in capsys.readouterr().out
    assert aliases(store) == {"champion": "1"}
    first = served(store)

    assert store.run("--version", 2, "--split", "train", "--promote.min_class_iou", "0.9") == 1
    found = capsys.readouterr()
    assert "error: version 2 of s does not pass the gates:\n  class IoU: " in found.err
    assert "expected at least 0.9 for every class" in found.err
    assert aliases(store) == {"champion": "1"}

    words = store.command("--version", 2, "--split", "train", *LENIENT, "--json", tmp_path / "found.json")
    environment = os.environ | {"RAY_ADDRESS": ray_cluster, "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    assert "version 2 on train, 41 images, against champion 1" in done.stdout
    for gate in ("package integrity", "classes", "relative latency", "mean IoU", "class IoU drop"):
        assert f"pass │ {gate}" in done.stdout
    assert "champion  models:/s/2\nprevious  models:/s/1\nmlflow    sqlite" in done.stdout
    assert aliases(store) == {"champion": "2", "previous": "1"}
    written = json.loads((tmp_path / "found.json").read_text())
    assert (written["champion"], written["previous"], written["is_moved"]) == ("2", "1", True)
    assert written["decision"]["verdict"] == "passed"
    assert written["decision"]["comparison"]["miou"]["ours"] == written["decision"]["measured"]["challenger"]["miou"]

    assert store.run("--rollback", "--reason", "complaints") == 0
    assert aliases(store) == {"champion": "1"}
    assert served(store) == first

    words = ["--version", 2, "--split", "train", "--promote.min_class_iou", "0.9"]
    assert store.run(*words, "--force", "--reason", "the demo is today") == 0
    assert "forced, a gate failed: the demo is today" in capsys.readouterr().out
    assert aliases(store) == {"champion": "2", "previous": "1"}


@pytest.mark.slow
def test_a_champion_of_other_classes_is_replaced_only_if_they_are_named(store, folder, tmp_path, capsys):
    ours = checkpoint.load_classes(folder).names
    other = _other(folder, tmp_path, 7, Classes.from_names(["lava", *ours[1:]]))
    run_id = store.client.create_run(store.experiment).info.run_id
    register_checkpoint(store.client, run_id, other, "s", ["champion"])
    words = ["--version", 1, "--split", "val", "--promote.max_latency_ratio", "9", "--dry-run"]
    assert store.run(*words) == 1
    said = (
        f"classes: missing: lava; additional: {ours[0]}; expected the classes of the champion, or "
        "promote.allowed_class_changes '[lava, "
    )
    assert said in capsys.readouterr().err
    assert store.run(*words, "--promote.allowed_class_changes", f"[lava, {ours[0]}]") == 0
    assert "dry run: nothing was written; the aliases would move." in capsys.readouterr().out
    assert aliases(store) == {"champion": "3"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--force"], "--force is given without --reason"),
        (["--reason", "x"], "--reason is given without --force or --rollback"),
        (["--force", "--reason", " "], "--reason is empty"),
        (["--rollback", "--force", "--reason", "x"], "--rollback is given with --force or --version"),
        (["--rollback", "--version", "1"], "--rollback is given with --force or --version"),
        (["--rollback"], "s has no version previous"),
        (["--workers", "0"], "--workers is 0"),
        (["--promote.min_class_iou", "2"], "promote.min_class_iou is 2; expected a number from 0 to 1"),
        ([], "s has no challenger; choose a version with --version (s has versions 1, 2; aliases: none)"),
        (["--version", "new"], "argument --version: invalid int value: 'new'"),
        (["--version", "9"], "(s has versions 1, 2; aliases: none)"),
        (["--name", "lanes"], "model lanes does not exist (registered models: s)"),
        (["--version", "1", "--split", "dev"], "the dataset has no split 'dev'"),
        (["--version", "1", "--tracking.uri", "sqlite:///nowhere.db"], "nowhere.db does not exist"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(store, words, said, capsys):
    assert store.run(*words) == 2
    found = capsys.readouterr().err
    assert said in found
    assert found.count("\n") == 1
    assert aliases(store) == {}
