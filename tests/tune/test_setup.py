"""Validation of a sweep before it starts, and restoring its trials from the journals."""

import json
from pathlib import Path

import pytest

from segray.cli import main as cli
from segray.core.errors import CapacityError, ConfigError, DataError, RegistryError, ResumeError
from segray.data.manifest import read_manifest
from segray.models import checkpoint
from segray.tracking.journal import Journal
from segray.training import resume
from segray.tune.journal import SweepJournal
from segray.tune.search import PriorTrial
from segray.tune.setup import prepare_sweep
from segray.tune.sweep import run_sweep
from segray.tune.trial import State, Trial

pytestmark = pytest.mark.usefixtures("ray_cluster")


def no_prior_trials(config, uri):
    return ()


def prepare(sweep_config, resume=None, messages=None):
    return prepare_sweep(sweep_config, resume, no_prior_trials, [].append if messages is None else messages.append)


PBT = {
    "tune__scheduler": "pbt",
    "tune__search": "random",
    "tune__space": {"optim.lr": {"loguniform": [1e-5, 1e-3]}},
}


@pytest.mark.parametrize(
    ("changes", "kind", "expected"),
    [
        ({"tune__space": {"optim.lrr": {"choice": [1]}}}, ConfigError, "did you mean 'optim.lr'?"),
        (
            {"tune__metrics": "val/mioo"},
            ConfigError,
            "tune.metrics contains val/mioo, which no trial reports; did you mean 'val/miou'?",
        ),
        ({"tune__metrics": "nothing"}, ConfigError, "val/iou/road"),
        ({"tune__metrics": "cost/gmac"}, ConfigError, "which does not depend on training"),
        ({"tune__metrics": "[val/miou, val/miou]"}, ConfigError, "expected each metric once"),
        (
            {"tune__scheduler": "asha", "train__val_every": 4},
            ConfigError,
            "because it compares validations during the training; use --train.val_every 1",
        ),
        (
            {"tune__scheduler": "asha", "tune__grace_steps": 4},
            ConfigError,
            "tune.grace_steps is 4; expected fewer than train.steps, 4",
        ),
        (
            {
                "tune__scheduler": "pbt",
                "tune__search": "random",
                "tune__space": {"model.variant": {"choice": ["b0", "b1"]}},
            },
            ConfigError,
            "tune.space contains model.variant, which cannot change during training",
        ),
        (
            {"tune__scheduler": "median", "tune__grace_steps": 4},
            ConfigError,
            "tune.grace_steps is 4; expected fewer than train.steps, 4",
        ),
        (
            {**PBT, "tune__perturbation_interval": 4},
            ConfigError,
            "tune.perturbation_interval is 4 and train.val_every is 2; "
            "tune.scheduler pbt expects both below train.steps, 4",
        ),
        (
            {**PBT, "train__val_every": 4},
            ConfigError,
            "tune.perturbation_interval is 1 and train.val_every is 4; tune.scheduler pbt expects both below",
        ),
        ({"train__workers": 4}, CapacityError, "use --train.workers 2"),
        ({"train__device": "cuda"}, CapacityError, "the cluster can hold 0"),
        ({"tune__max_concurrent": 3}, CapacityError, "use --tune.max_concurrent 2"),
        ({"data__train_split": "nowhere"}, DataError, "no split 'nowhere'"),
        (
            {"tune__warm_start": "gone", "tune__search": "optuna", "tracking__uri": "sqlite:////nowhere/mlflow.db"},
            RegistryError,
            "mlflow.db does not exist",
        ),
    ],
)
def test_an_invalid_sweep_is_an_error_before_anything_starts(settings, tmp_path, changes, kind, expected):
    with pytest.raises(kind) as refused:
        run_sweep(settings(**changes), say=lambda _line: None)
    assert expected in str(refused.value)
    assert not (tmp_path / "results").exists() or not any((tmp_path / "results").iterdir())


def test_only_the_folder_of_a_sweep_can_be_resumed(settings, tmp_path):
    with pytest.raises(ResumeError, match="which contains no sweep"):
        prepare(settings(), str(tmp_path))
    run = tmp_path / "results" / "run"
    run.mkdir(parents=True)
    (run / checkpoint.CONFIG).write_text(
        settings().model_copy(update={"tune": type(settings().tune)()}).model_dump_json()
    )
    Journal(run).write("run", key="k", dataset={"digest": "d"})
    with pytest.raises(ResumeError, match="the folder contains a run, not a sweep"):
        prepare(settings(), str(run))


def test_auto_resumes_the_latest_sweep_with_the_same_settings_or_starts_a_new_one(settings):
    messages = []
    first = prepare(settings(), "auto", messages)
    assert messages == [
        f"{first.folder.parent} contains no unfinished sweep with these settings; starting a new sweep."
    ]
    with pytest.raises(ResumeError, match="another process trains in"):
        prepare(settings(), str(first.folder))
    first.lock.close()
    resumed = prepare(settings(tune__trials=5, tune__budget={"hours": 9}, tune__seeds=1), "auto")
    assert (resumed.folder, resumed.key) == (first.folder, first.key)
    resumed.lock.close()
    other = prepare(settings(optim__weight_decay=0.5), "auto", messages)
    assert other.folder != first.folder
    other.lock.close()


def test_train_does_not_resume_a_sweep(settings):
    sweep_config = prepare(settings())
    sweep_config.lock.close()
    with pytest.raises(ResumeError, match=r"which is a sweep; use pipelines/tune.py"):
        resume.resolve_run(str(sweep_config.folder))
    assert resume.find_latest_run(sweep_config.config, read_manifest(sweep_config.config.data.root).digest) is None


def test_the_journal_restores_the_trials(tmp_path):
    record = SweepJournal(tmp_path, ("val/miou", "cost/gmac"))
    trials = [Trial(number, {"optim.lr": 0.1 * number}) for number in range(5)]
    for trial in trials:
        record.log_suggestion(trial)
    states = [State.FINISHED, State.STOPPED, State.PAUSED, State.RUNNING, State.PENDING]
    trials[2].curve = {2: 0.2, 4: 0.4}
    for trial, state in zip(trials[:4], states, strict=False):
        trial.state, trial.reason, trial.seconds = state, "because", 2.5
        record.log_state(trial)
    for number in (2, 3):
        run = tmp_path / f"trial-00{number}"
        run.mkdir()
        journal = Journal(run)
        journal.write("metrics", step=1, values={"train/loss": 1.0})
        journal.write("metrics", step=2, values={"val/miou": 0.2})
        journal.write("metrics", step=4, values={"val/miou": 0.4})
    journal.write("rewound", step=2, donor="trial-001")
    with (tmp_path / "journal.jsonl").open("a") as file:
        file.write('{"kind": "trial", "num')  # whose writer died
    restored = record.load_trials()
    assert [trial.number for trial in restored] == [0, 1, 2, 3, 4]
    assert [trial.state for trial in restored] == [
        State.FINISHED,
        State.STOPPED,
        State.PAUSED,
        State.PENDING,
        State.PENDING,
    ]
    assert [trial.curve for trial in restored] == [{}, {}, {2: 0.2, 4: 0.4}, {2: 0.2}, {}]
    assert restored[0].values == {"optim.lr": 0.0}
    assert restored[2].seconds == 2.5


def test_a_warm_start_is_restored_under_todays_names_of_settings(settings):
    started = prepare(settings())
    started.lock.close()
    file = started.record.journal.path
    first, *rest = file.read_text().splitlines(keepends=True)
    known = [[{"optim.clip": 0.5}, {"val/miou": 0.25}]]
    file.write_text(json.dumps(json.loads(first) | {"known": known}) + "\n" + "".join(rest))
    resumed = prepare(settings(), resume=str(started.folder))
    resumed.lock.close()
    assert resumed.prior_trials == (PriorTrial({"optim.max_grad_norm": 0.5}, {"val/miou": 0.25}),)


def create_running_trial(tmp_path, **changes):
    """Returns the journal of a sweep with one running trial, the trial, and the journal of its run."""
    record, trial = SweepJournal(tmp_path, ("val/miou", "cost/gmac")), Trial(0, {}, State.RUNNING)
    record.log_suggestion(trial)
    for name, value in changes.items():
        setattr(trial, name, value)
    record.log_state(trial)
    (tmp_path / "trial-000").mkdir()
    return record, trial, Journal(tmp_path / "trial-000")


def test_the_costs_of_a_model_are_restored(tmp_path):
    record, _, _ = create_running_trial(tmp_path, other_metrics={"cost/gmac": 3.0, "val/aacc": 0.5})
    assert record.load_trials()[0].other_metrics == {"cost/gmac": 3.0}  # the others are in the run's journal


def test_validations_of_a_paused_trial_after_its_pause_are_ignored(tmp_path):
    record, trial, journal = create_running_trial(tmp_path)
    journal.write("metrics", step=2, values={"val/miou": 0.2})
    trial.curve, trial.state = {2: 0.2}, State.PAUSED
    record.log_state(trial)
    journal.write("metrics", step=4, values={"val/miou": 0.4})
    journal.write("end", status="FINISHED")
    (paused,) = record.load_trials()
    assert (paused.state, paused.curve) == (State.PAUSED, {2: 0.2})
    trial.state = State.RUNNING
    record.log_state(trial)
    (resumed,) = record.load_trials()
    assert (resumed.state, resumed.curve) == (State.FINISHED, {2: 0.2, 4: 0.4})


def test_a_completed_copy_is_not_repeated(tmp_path):
    record, _, journal = create_running_trial(tmp_path, copy_from=3)
    assert record.load_trials()[0].copy_from == 3
    journal.write("rewound", step=2, donor="trial-003")
    assert record.load_trials()[0].copy_from is None


def test_values_before_a_copy_do_not_count_after_a_resume(tmp_path):
    record, _, journal = create_running_trial(tmp_path)
    journal.write("metrics", step=2, values={"val/miou": 0.7})
    journal.write("metrics", step=4, values={"val/miou": 0.4})
    assert record.load_trials()[0].best == 0.7
    journal.write("rewound", step=2, donor="trial-003")
    assert record.load_trials()[0].best is None
    journal.write("metrics", step=4, values={"val/miou": 0.5})
    assert record.load_trials()[0].best == 0.5


def test_values_before_a_copy_that_was_interrupted_do_not_count(tmp_path):
    record, _, journal = create_running_trial(tmp_path, copy_from=3)
    journal.write("metrics", step=2, values={"val/miou": 0.7})
    assert record.load_trials()[0].best is None  # the run may have removed its checkpoints already


def test_the_run_time_of_killed_runs_counts(tmp_path, monkeypatch):
    record, _, journal = create_running_trial(tmp_path)
    for at, kind in [(0, "run"), (50, "metrics"), (90, "metrics"), (1000, "resumed"), (1040, "metrics"), (5000, "tag")]:
        monkeypatch.setattr("time.time", lambda at=at: 1e9 + at)
        journal.write(kind, step=0, values={}, name="", value="", dataset={})
    assert record.load_trials()[0].seconds == 90 + 40


def test_a_trial_whose_run_finished_without_a_report_is_finished(tmp_path):
    record = SweepJournal(tmp_path, ("val/miou",))
    trial = Trial(0, {})
    record.log_suggestion(trial)
    trial.state = State.RUNNING
    record.log_state(trial)
    run = tmp_path / "trial-000"
    run.mkdir()
    Journal(run).write("metrics", step=4, values={"val/miou": 0.4})
    Journal(run).write("end", status="FINISHED")
    assert record.load_trials()[0].state is State.FINISHED


def test_the_command_prints_an_error_in_one_line(settings, tmp_path, monkeypatch, capsys):
    file = tmp_path / "sweep.yaml"
    file.write_text(json.dumps(settings().model_dump(mode="json", exclude={"tune"})))
    words = ["--config", str(file), "--tune.space.optim.lr", "{loguniform: [1e-3, 1e-5]}"]
    monkeypatch.setattr("sys.argv", ["tune", *words])
    with pytest.raises(SystemExit) as ended:
        cli.run("tune")
    assert ended.value.code == 2
    messages = capsys.readouterr().err
    assert messages == "error: tune.space.optim.lr.loguniform is ['1e-3', '1e-5']; expected LOW < HIGH.\n"
    assert not Path(tmp_path / "results").exists()
