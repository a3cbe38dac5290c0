"""What cannot be swept is refused at once, and leaves nothing behind."""

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
from segray.tune.setup import prepare_sweep
from segray.tune.sweep import run_sweep
from segray.tune.trial import State, Trial

pytestmark = pytest.mark.usefixtures("ray_cluster")


def no_prior_trials(config, uri):
    return ()


def begun(made, resume=None, said=None):
    return prepare_sweep(made, resume, no_prior_trials, [].append if said is None else said.append)


MOVING = {
    "tune__scheduler": "pbt",
    "tune__search": "random",
    "tune__space": {"optim.lr": {"loguniform": [1e-5, 1e-3]}},
}


@pytest.mark.parametrize(
    ("changes", "kind", "told"),
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
            {**MOVING, "tune__perturbation_interval": 4},
            ConfigError,
            "tune.perturbation_interval is 4 and train.val_every is 2; "
            "tune.scheduler pbt expects both below train.steps, 4",
        ),
        (
            {**MOVING, "train__val_every": 4},
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
def test_what_cannot_be_swept_is_refused_before_anything_starts(settings, tmp_path, changes, kind, told):
    with pytest.raises(kind) as refused:
        run_sweep(settings(**changes), say=lambda _line: None)
    assert told in str(refused.value)
    assert not (tmp_path / "results").exists() or not any((tmp_path / "results").iterdir())


def test_a_folder_that_is_no_sweep_or_a_run_is_not_gone_on_with(settings, tmp_path):
    with pytest.raises(ResumeError, match="which contains no sweep"):
        begun(settings(), str(tmp_path))
    run = tmp_path / "results" / "run"
    run.mkdir(parents=True)
    (run / checkpoint.CONFIG).write_text(
        settings().model_copy(update={"tune": type(settings().tune)()}).model_dump_json()
    )
    Journal(run).write("run", key="k", dataset={"digest": "d"})
    with pytest.raises(ResumeError, match="the folder contains a run, not a sweep"):
        begun(settings(), str(run))


def test_auto_goes_on_with_the_latest_of_the_same_settings_and_says_if_there_is_none(settings):
    said = []
    first = begun(settings(), "auto", said)
    assert said == [f"{first.folder.parent} contains no unfinished sweep with these settings; starting a new sweep."]
    with pytest.raises(ResumeError, match="another process trains in"):
        begun(settings(), str(first.folder))
    first.lock.close()
    again = begun(settings(tune__trials=5, tune__budget={"hours": 9}, tune__seeds=1), "auto")
    assert (again.folder, again.key) == (first.folder, first.key)
    again.lock.close()
    other = begun(settings(optim__weight_decay=0.5), "auto", said)
    assert other.folder != first.folder
    other.lock.close()


def test_a_sweep_is_no_run_that_train_goes_on_with(settings):
    made = begun(settings())
    made.lock.close()
    with pytest.raises(ResumeError, match=r"which is a sweep; use pipelines/tune.py"):
        resume.resolve_run(str(made.folder))
    assert resume.find_latest_run(made.config, read_manifest(made.config.data.root).digest) is None


def test_the_record_brings_the_trials_back(tmp_path):
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
    found = record.load_trials()
    assert [trial.number for trial in found] == [0, 1, 2, 3, 4]
    assert [trial.state for trial in found] == [
        State.FINISHED,
        State.STOPPED,
        State.PAUSED,
        State.PENDING,
        State.PENDING,
    ]
    assert [trial.curve for trial in found] == [{}, {}, {2: 0.2, 4: 0.4}, {2: 0.2}, {}]
    assert found[0].values == {"optim.lr": 0.0}
    assert found[2].seconds == 2.5


def begun_trial(tmp_path, **changes):
    """Returns a record of one trial that runs, the trial, and the journal of its run."""
    record, trial = SweepJournal(tmp_path, ("val/miou", "cost/gmac")), Trial(0, {}, State.RUNNING)
    record.log_suggestion(trial)
    for name, value in changes.items():
        setattr(trial, name, value)
    record.log_state(trial)
    (tmp_path / "trial-000").mkdir()
    return record, trial, Journal(tmp_path / "trial-000")


def test_what_a_model_costs_is_known_again(tmp_path):
    record, _, _ = begun_trial(tmp_path, other_metrics={"cost/gmac": 3.0, "val/aacc": 0.5})
    assert record.load_trials()[0].other_metrics == {"cost/gmac": 3.0}  # the others are in the run's journal


def test_what_a_paused_trial_validated_before_it_heard_of_it_is_not_judged(tmp_path):
    record, trial, journal = begun_trial(tmp_path)
    journal.write("metrics", step=2, values={"val/miou": 0.2})
    trial.curve, trial.state = {2: 0.2}, State.PAUSED
    record.log_state(trial)
    journal.write("metrics", step=4, values={"val/miou": 0.4})
    journal.write("end", status="FINISHED")
    (paused,) = record.load_trials()
    assert (paused.state, paused.curve) == (State.PAUSED, {2: 0.2})
    trial.state = State.RUNNING
    record.log_state(trial)
    (goes_on,) = record.load_trials()
    assert (goes_on.state, goes_on.curve) == (State.FINISHED, {2: 0.2, 4: 0.4})


def test_a_copy_that_was_made_is_not_made_again(tmp_path):
    record, _, journal = begun_trial(tmp_path, copy_from=3)
    assert record.load_trials()[0].copy_from == 3
    journal.write("rewound", step=2, donor="trial-003")
    assert record.load_trials()[0].copy_from is None


def test_the_time_of_what_was_killed_is_spent(tmp_path, monkeypatch):
    record, _, journal = begun_trial(tmp_path)
    for at, kind in [(0, "run"), (50, "metrics"), (90, "metrics"), (1000, "resumed"), (1040, "metrics"), (5000, "tag")]:
        monkeypatch.setattr("time.time", lambda at=at: 1e9 + at)
        journal.write(kind, step=0, values={})
    assert record.load_trials()[0].seconds == 90 + 40


def test_a_run_that_finished_before_the_sweep_heard_of_it_is_finished(tmp_path):
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


def test_the_command_tells_a_mistake_in_one_line(settings, tmp_path, monkeypatch, capsys):
    file = tmp_path / "sweep.yaml"
    file.write_text(json.dumps(settings().model_dump(mode="json", exclude={"tune"})))
    words = ["--config", str(file), "--tune.space.optim.lr", "{loguniform: [1e-3, 1e-5]}"]
    monkeypatch.setattr("sys.argv", ["tune", *words])
    with pytest.raises(SystemExit) as ended:
        cli.run("tune")
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said == "error: tune.space.optim.lr.loguniform is ['1e-3', '1e-5']; expected LOW < HIGH.\n"
    assert not Path(tmp_path / "results").exists()
