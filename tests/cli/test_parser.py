"""Every command ends as promised: 0, 2 with one clear message, never a traceback."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import main as benchmark
from segray import config
from segray.cli import main
from segray.cli.flags import PARSERS
from segray.cli.parser import CommandParser, parse_dotted_flags, run_command, write_json
from segray.cli.settings import COMMAND_SETTINGS
from segray.config import Config
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
    with pytest.raises(ConfigError, match="unexpected argument 'stray'; expected --section.setting VALUE"):
        parse_dotted_flags(["stray"])


def test_no_scheduler_is_spelt_as_no_value_is():
    assert config.build(parse_dotted_flags(["--tune.scheduler", "none"])).tune.scheduler == "none"


def test_settings_come_from_the_environment_then_files_then_flags(tmp_path, monkeypatch):
    base, more = tmp_path / "base.yaml", tmp_path / "more.yaml"
    base.write_text("results: /base\ntracking: {uri: http://base}\ntrain: {seed: 1}")
    more.write_text("train: {seed: 2}\ndata: {root: /more}")
    monkeypatch.setenv("SEGRAY_CONFIG", str(base))
    _, found = CommandParser("train", "x").parse(["--config", str(more), "--data.root", "/flag"])
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
        (["train", "--data", "nowhere"], "nowhere contains no dataset"),
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
        (["evaluate", "--model", "models:/m@a", "--data", "x"], "mlflow.db does not exist"),
        (["benchmark", "model", "--batch", "0"], "--batch is 0; expected at least 1."),
        (["benchmark", "model", "--device", "cuda"], "torch finds no GPU here"),
        (["train", "--resume", "nowhere"], "--resume is nowhere, which contains no run"),
        (
            ["train", "--train.batch", "4", "--train.accumulation_steps", "5"],
            "train.accumulation_steps is 5; expected at most 4, the number of images per worker",
        ),
        (["train", "--train.min_workers", "2"], "train.min_workers is 2; expected at most train.workers, 1"),
        (["train", "--loss.terms", "dicee"], "loss.terms is dicee; expected cross_entropy, ohem"),
        (["tracking", "snc", "x"], "invalid choice: 'snc'"),
        (["tracking", "sync", "nowhere"], "nowhere has no journal.jsonl"),
        (["train", "--serve.port", "80"], "--serve.port is not a setting of train; serve uses it."),
        (["train", "--tune.trials=2"], "--tune.trials is not a setting of train; tune and doctor use it."),
        (["promote", "--serve.most_images", "2"], "--serve.most_images is not a setting of promote; serve uses it."),
        (
            ["evaluate", "--model", "x", "--data.crop", "64"],
            "--data.crop is not a setting of evaluate; train, tune, doctor and analyse batches use it.",
        ),
        (
            ["predict", "--model", "x", "--source", "y", "--out", "z", "--eval.beta", "2"],
            "--eval.beta is not a setting of predict; train, tune, evaluate, promote and doctor use it.",
        ),
        (["serve", "--promote.min_class_iou.road", "1"], "is not a setting of serve; promote uses it."),
        (["analyse", "curves", "--tracking.model", "x"], "is not a setting of analyse curves; train, tune, promote, "),
        (["benchmark", "train", "--tune.space", "{}"], "--tune.space is not a setting of benchmark train; tune and "),
        (["doctor", "--promote", "{}"], "--promote is not a setting of doctor; promote uses it."),
        (["train", "--serve.prt", "80"], "serve.prt is not a setting; did you mean serve.port?"),
        (["train", "--data", "x", "--data.root", "y"], "--data and --data.root are both given; expected one of them"),
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


def test_an_earlier_command_names_its_new_command_line(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["segray", "benchmark", "model"])
    assert ended(main.main, capsys) == (2, "error: `segray benchmark` is now `python pipelines/benchmark.py`.\n")


def test_flags_need_no_heavy_library():
    code = (
        "import sys; from segray.cli.flags import PARSERS; [make_parser() for make_parser in PARSERS.values()]; "
        "import segray.cli.main, segray.cli.analyse; assert not {'torch', 'ray', 'mlflow'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_every_command_has_flags():
    assert {*PARSERS, "analyse"} == {*main.COMMANDS, "validate"}
    for name, make_parser in PARSERS.items():
        assert make_parser().format_help().startswith("usage: "), name


def test_settings_of_a_command_exist():
    for settings in COMMAND_SETTINGS.values():
        for key in settings:
            section, _, name = key.partition(".")
            annotation = Config.model_fields[section].annotation
            assert not name or name in annotation.model_fields, key


def test_a_short_flag_is_validated_like_its_setting():
    parser = CommandParser("serve", "x")
    parser.add_alias("--shadow", "serve.shadow", nargs="?", const="1")
    assert parser.parse(["--shadow"])[1].serve.shadow == 1
    assert parser.parse(["--shadow", "0.5", "--serve.port", "80"])[1].serve.shadow == 0.5
    assert vars(parser.parse([])[0]) == {"help": False, "config": []}
    with pytest.raises(ConfigError, match=r"serve\.shadow is '2'; expected less than or equal to 1"):
        parser.parse(["--shadow", "2"])


def test_a_file_may_hold_sections_of_other_commands_which_must_be_valid(tmp_path):
    file = tmp_path / "project.yaml"
    file.write_text("train: {seed: 3}\ntune: {space: {optim.lr: {choice: [1]}}}\nserve: {port: 80}")
    words = ["--config", str(file)]
    trained = CommandParser("train", "x").parse(words)[1]
    assert (trained.train.seed, trained.tune, trained.serve) == (3, Config().tune, Config().serve)
    assert CommandParser("tune", "x").parse(words)[1].tune.space == {"optim.lr": {"choice": [1]}}
    file.write_text("serve: {port: 0}")
    with pytest.raises(ConfigError, match=r"serve\.port is 0"):
        CommandParser("train", "x").parse(words)


def test_a_resumed_run_starts_from_its_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run/step-4").mkdir(parents=True)
    (tmp_path / "run/config.json").write_text(json.dumps({"train": {"seed": 3, "steps": 9000}}))
    parser = CommandParser("train", "x")
    parser.add_common("resume")
    for folder in ("~/run", "~/run/step-4", str(tmp_path / "run")):
        train = parser.parse(["--resume", folder, "--train.steps", "8000"])[1].train
        assert (train.seed, train.steps) == (3, 8000)
    assert parser.parse(["--resume", "auto"])[1].train.seed == 0


def test_a_result_that_cannot_be_written_is_one_line(capsys):
    code, message = ended(lambda: write_json(Path("/dev/full"), {"a": 1}), capsys)
    assert code == 2
    assert message == "error: --json /dev/full cannot be written ([Errno 28] No space left on device).\n"


@pytest.mark.parametrize("command", sorted(main.COMMANDS))
def test_help_names_every_flag(command, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["segray", command, "--help"])
    with pytest.raises(SystemExit) as raised:
        main.main()
    assert raised.value.code == 0
    shown = capsys.readouterr().out
    assert "--help" in shown
    settings = COMMAND_SETTINGS.get(command, ())
    for key, flag in {
        "optim": "--optim.lr FLOAT",
        "data": "--data.augment YAML",
        "loss": "--loss.class_weights YAML",
        "data.root": "--data.root STR",
        "tune": "--tune.budget.hours",
        "serve": "--serve.port INT",
        "promote": "--promote.min_class_iou YAML",
    }.items():
        assert (flag in shown) == (key in settings or key.partition(".")[0] in settings)
