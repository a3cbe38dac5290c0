"""Every command ends as promised: 0, 2 with one clear message, never a traceback."""

import sys

import pytest

from benchmarks import main as benchmark
from segray import config
from segray.cli import main
from segray.cli.command import CommandParser, parse_dotted_flags, run_command
from segray.core.errors import ConfigError, DataError, TrainingError


def ended(command, capsys):
    with pytest.raises(SystemExit) as raised:
        run_command(command)
    return raised.value.code, capsys.readouterr().err


def raising(error):
    def command():
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code"),
    [(ConfigError("a"), 2), (DataError("a"), 2), (TrainingError("a"), 1), (KeyboardInterrupt(), 130)],
)
def test_exit_codes(error, code, capsys):
    found, said = ended(raising(error), capsys)
    assert found == code
    assert "Traceback" not in said
    assert said.count("\n") == 1


def test_a_defect_of_ours_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        run_command(raising(ZeroDivisionError()))


def test_dotted_flags():
    words = ["--optim.lr", "6e-5", "--data.root=DIR", "--data.short_side", "none", "--data.photometric", "--name", "-1"]
    assert parse_dotted_flags(words) == {
        "optim.lr": "6e-5",
        "data.root": "DIR",
        "data.short_side": None,
        "data.photometric": "true",
        "name": "-1",
    }
    with pytest.raises(ConfigError, match="'stray' stands alone"):
        parse_dotted_flags(["stray"])


def test_no_scheduler_is_spelt_as_no_value_is():
    assert config.build(parse_dotted_flags(["--tune.scheduler", "none"])).tune.scheduler == "none"


def test_settings_come_from_the_environment_then_files_then_flags(tmp_path, monkeypatch):
    base, more = tmp_path / "base.yaml", tmp_path / "more.yaml"
    base.write_text("results: /base\ntracking: {uri: http://base}\ntrain: {seed: 1}")
    more.write_text("train: {seed: 2}\ndata: {root: /more}")
    monkeypatch.setenv("SEGRAY_CONFIG", str(base))
    _, found = CommandParser("x", with_config=True).parse(["--config", str(more), "--data.root", "/flag"])
    assert (found.results, found.tracking.uri, found.train.seed, found.data.root) == (
        "/base",
        "http://base",
        2,
        "/flag",
    )


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["train", "--optim.lrr", "1"], "optim.lrr is not a setting; did you mean optim.lr?"),
        (["train", "--data.crop", "500"], "data.crop is 500; expected a multiple of 32; use 512."),
        (["train", "--optim.lr", "fast"], "optim.lr is 'fast'; expected"),
        (["train", "--config", "gone.yaml"], "config file gone.yaml does not exist."),
        (["train", "--data", "nowhere"], "nowhere holds no dataset"),
        (["prepare", "--format", "nothing", "--out", "x"], "--format is nothing; expected one of demo, folder"),
        (["prepare", "--out", "x"], "--format"),
        (["prepare", "--format", "folder", "--source", "nowhere", "--out", "x"], "nowhere"),
        (["evaluate", "--model", "nowhere", "--data", "x"], "nowhere"),
        (["evaluate"], "--model"),
        (["evaluate", "--model", "nowhere", "--data", "x", "--workers", "0"], "--workers is 0; expected at least 1."),
        (["train", "--model.head", "mmsegg"], "model.head is mmsegg; expected official, mmseg, or module:attribute"),
        (["benchmark", "model", "--variant", "b6"], "invalid choice: 'b6'"),
        (["train", "--name", "../out"], "name is '../out'"),
        (["train", "--optim.lr", "inf"], "optim.lr is 'inf'"),
        (["train", "--trian.workers", "2"], "trian.workers is not a setting; did you mean train.workers?"),
        (["train", "--json", "gone/x.json"], "--json is gone/x.json"),
        (["evaluate", "--model", "models:/m@a", "--data", "x"], "there is no MLflow store"),
        (["benchmark", "model", "--batch", "0"], "--batch is 0; expected at least 1."),
        (["benchmark", "model", "--device", "cuda"], "torch finds no GPU here"),
        (["train", "--resume", "nowhere"], "--resume is nowhere, which holds no run"),
        (
            ["train", "--train.batch", "4", "--train.accumulate", "5"],
            "train.accumulate is 5; expected at most the 4 images",
        ),
        (["train", "--train.min_workers", "2"], "train.min_workers is 2; expected at most train.workers, 1"),
        (["train", "--loss.terms", "dicee"], "loss.terms is dicee; expected cross_entropy, ohem"),
        (["tracking", "snc", "x"], "invalid choice: 'snc'"),
        (["tracking", "sync", "nowhere"], "nowhere holds no journal.jsonl"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_two(argv, said, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    command, words = (benchmark.main, argv[1:]) if argv[0] == "benchmark" else (main.main, argv)
    monkeypatch.setattr(sys, "argv", ["segray", *words])
    found, message = ended(command, capsys)
    assert found == 2
    assert message.startswith("error: ")
    assert said in message
    assert message.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


WITH_SETTINGS = ("train", "tune", "evaluate", "predict", "promote", "serve", "doctor")


@pytest.mark.parametrize("command", sorted(main.COMMANDS))
def test_help_names_every_flag(command, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["segray", command, "--help"])
    with pytest.raises(SystemExit) as raised:
        main.main()
    assert raised.value.code == 0
    shown = capsys.readouterr().out
    assert "--help" in shown
    assert ("--optim.lr" in shown) == (command in WITH_SETTINGS)
    for flag in ("--data.augment YAML", "--loss.terms YAML", "--loss.class_weights YAML"):
        assert (flag in shown) == (command in WITH_SETTINGS)
