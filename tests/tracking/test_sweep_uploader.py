"""A sweep and its trials in MLflow: each once, trials below their sweep, whatever was interrupted."""

import shutil

import pytest
from mlflow.tracking import MlflowClient

from segray import config
from segray.core.errors import DataError, RegistryError
from segray.tracking.journal import Journal
from segray.tracking.sweep_uploader import SweepUploader
from segray.tracking.uploader import RunUploader
from segray.tune.warm_start import load_prior_trials

DATASET = {"name": "streets", "digest": "d", "root": "/streets"}


def begin(folder, key, params, tags=None, **more):
    folder.mkdir(parents=True)
    journal = Journal(folder)
    record = {"key": key, "name": folder.name, "experiment": "segray", "params": params, "dataset": DATASET}
    journal.write("run", **record, tags=tags or {}, **more)
    return journal


@pytest.fixture
def uri(tmp_path, empty_store):
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def sweep(tmp_path):
    """A sweep of three trials, one of which was never validated."""
    folder = tmp_path / "sweep"
    begin(folder, "parent", {"train.steps": 100}, {"segray.kind": "sweep"}).write("end", status="FINISHED")
    for number, (rate, miou) in enumerate([(1e-3, 0.5), (1e-2, 0.7), (1e-4, None)]):
        params = {"optim.lr": rate, "loss.terms": ["ohem"], "data.crop": 64}
        journal = begin(folder / f"trial-00{number}", f"child-{number}", params, parent="parent", number=number)
        if miou is not None:
            journal.write("metrics", step=4, values={"val/miou": miou})
        journal.write("end", status="KILLED")
    return folder


def runs(uri):
    client = MlflowClient(uri, uri)
    found = client.search_runs([client.get_experiment_by_name("segray").experiment_id])
    return {run.info.run_name: run for run in found}, len(found)


def test_trials_are_below_their_sweep_and_each_there_once(sweep, uri):
    SweepUploader(sweep, uri).flush()
    family = SweepUploader(sweep, uri)
    family.flush()
    family.flush()
    found, count = runs(uri)
    assert count == 4
    for number in range(3):
        run = found[f"trial-00{number}"]
        assert run.data.tags["mlflow.parentRunId"] == found["sweep"].info.run_id == family.run_id
        assert run.data.tags["segray.trial"] == str(number)
        assert run.info.status == "KILLED"


def test_what_comes_later_is_sent_later(sweep, uri):
    family = SweepUploader(sweep, uri)
    family.flush()
    Journal(sweep / "trial-001").write("tag", name="segray.outcome", value="stopped")
    family.flush()
    found, _ = runs(uri)
    assert found["trial-001"].data.tags["segray.outcome"] == "stopped"


def test_a_trial_waits_for_its_sweep(sweep, uri):
    with pytest.raises(RegistryError, match="the sweep of trial-000 has no MLflow run yet"):
        RunUploader(sweep / "trial-000", uri).flush()


def test_a_trial_that_is_refused_keeps_no_other_back(sweep, uri):
    (sweep / "trial-000/journal.jsonl").write_text('{"kind": "end", "status": "FINISHED", "time_ms": 1}\n')
    with pytest.raises(RegistryError, match="does not start with a record of kind run"):
        SweepUploader(sweep, uri).flush()
    found, _ = runs(uri)
    assert {"trial-001", "trial-002"} < set(found)


def warm(uri, **over):
    space = {"optim.lr": {"loguniform": [1e-4, 1e-1]}, "loss.terms": {"choice": [["ohem"], ["focal"]]}}
    tune = {"space": space, "warm_start": "sweep"} | over
    return load_prior_trials(config.build({"tune": tune, "tracking.uri": uri}), uri)


def test_an_earlier_sweep_is_known_by_name_and_by_id(sweep, uri):
    family = SweepUploader(sweep, uri)
    family.flush()
    for name in ("sweep", family.run_id):
        found = sorted(warm(uri, warm_start=name), key=lambda one: one.values["optim.lr"])
        assert [(one.values, one.metrics) for one in found] == [
            ({"optim.lr": 1e-3, "loss.terms": ["ohem"]}, {"val/miou": 0.5}),
            ({"optim.lr": 1e-2, "loss.terms": ["ohem"]}, {"val/miou": 0.7}),
        ]


def test_trials_outside_the_space_are_left_out(sweep, uri):
    SweepUploader(sweep, uri).flush()
    (only,) = warm(uri, space={"optim.lr": {"uniform": [0.005, 0.1]}, "data.crop": {"int": [32, 96]}})
    assert only.values == {"optim.lr": 1e-2, "data.crop": 64}
    with pytest.raises(DataError, match="a sweep with 3 trials; none of them has values of optim.lr within this space"):
        warm(uri, space={"optim.lr": {"uniform": [0.5, 1]}})
    with pytest.raises(DataError, match=r"experiment segray has no sweep with this name or id; did you mean 'sweep'\?"):
        warm(uri, warm_start="sweeep")


def test_only_trials_that_did_not_fail_are_known(sweep, uri):
    for name, status in (("trial-003", "FAILED"), ("seed-1", "FINISHED"), ("trial-004", "FINISHED")):
        params = {"optim.lr": 2e-2, "loss.terms": ["focal"]}
        journal = begin(sweep / name, name, params, parent="parent", number=9)
        journal.write("metrics", step=4, values={"val/miou": 0.9})
        journal.write("end", status=status)
    SweepUploader(sweep, uri).flush()
    assert sum(one.values["loss.terms"] == ["focal"] for one in warm(uri)) == 1


def test_what_was_stopped_is_known_with_what_it_would_have_ended_at(sweep, uri):
    journal = Journal(sweep / "trial-002")
    for step in range(5, 50, 5):
        journal.write("metrics", step=step, values={"val/miou": 0.8 * (1 - 2.718281828 ** (-step / 40))})
    SweepUploader(sweep, uri).flush()
    (slow,) = [one for one in warm(uri) if one.values["optim.lr"] == 1e-4]
    assert slow.metrics["val/miou"] == pytest.approx(0.8 * (1 - 2.718281828 ** (-100 / 40)), abs=0.03)


def test_a_choice_may_be_spelt_otherwise(sweep, uri):
    SweepUploader(sweep, uri).flush()
    found = warm(uri, space={"optim.lr": {"choice": ["1e-3", 1e-2]}, "loss.terms": {"choice": ["ohem", "focal"]}})
    assert sorted((str(one.values["optim.lr"]), one.values["loss.terms"]) for one in found) == [
        ("0.01", "ohem"),
        ("1e-3", "ohem"),
    ]


def test_a_trial_that_removes_its_folder_keeps_no_other_back(sweep, uri):
    """A run that cannot work removes its folder, between any two calls of an upload."""
    family = SweepUploader(sweep, uri)

    def remove_before(run, removed):
        flush = run.flush

        def remove_and_flush():
            shutil.rmtree(removed)
            flush()

        run.flush = remove_and_flush

    remove_before(family.parent, sweep / "trial-000")  # after the listing of the trials
    remove_before(family.uploader_for(sweep / "trial-001"), sweep / "trial-001")  # after a look at its journal
    family.flush()
    assert runs(uri)[0].keys() == {"sweep", "trial-002"}
