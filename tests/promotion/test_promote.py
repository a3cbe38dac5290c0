"""A promotion on what was measured elsewhere: moved, refused, forced, tried, undone, overtaken, killed anywhere."""

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mlflow.tracking import MlflowClient

from segray import config
from segray.config.eval import EvalConfig
from segray.core.classes import Classes
from segray.core.errors import PromotionError, RegistryError
from segray.evaluation.compare import compare
from segray.evaluation.counter import Counts, ImageCounts
from segray.evaluation.evaluate import Evaluation, EvaluationRequest
from segray.evaluation.metrics.calibration import NUM_BINS
from segray.evaluation.results import compute_results
from segray.models import checkpoint
from segray.models.build import build_model
from segray.promotion import promote
from segray.promotion.aliases import _create_lock, apply_change, get_aliases
from segray.promotion.audit import PromotionOptions
from segray.promotion.gates import ModelMeasurements
from segray.promotion.measure import Measurements
from segray.promotion.plan import plan_promotion
from segray.promotion.promote import PromotionRequest, rollback
from segray.tracking.registry import download_checkpoint, open_checkpoint, register_checkpoint
from tests.promotion.conftest import Dying, Killed

CLASSES = Classes.from_names(["road", "car", "sky"])
ROWS = 30
RIGHT = {"1": 0.5, "2": 0.6, "3": 0.8}
"""How often each version is right."""


@pytest.fixture(scope="module")
def made(tmp_path_factory, empty_store):
    """A store with three versions of a model, each of a run, and what is known of them."""
    place = tmp_path_factory.mktemp("versions")
    uri = f"sqlite:///{shutil.copy(empty_store, place / 'mlflow.db')}"
    client = MlflowClient(uri, uri)
    experiment = client.create_experiment("tests", str(place / "artifacts"))
    settings = config.build({"data.crop": 64})
    for number in range(3):
        run_id = client.create_run(experiment).info.run_id
        folder = place / f"step-{number}"
        folder.mkdir()
        torch.manual_seed(number)
        meta = checkpoint.Meta(step=number, dataset_digest="d1g", versions={})
        checkpoint.snapshot(build_model(settings, CLASSES), {}, settings, CLASSES, meta).write(folder)
        register_checkpoint(client, run_id, folder, "streets", ["challenger"])
    client.set_registered_model_alias("streets", "champion", "2")
    client.set_registered_model_alias("streets", "previous", "1")
    return place


@pytest.fixture
def store(made, tmp_path, monkeypatch):
    """A copy of it; measuring is replaced by what is known of the versions."""
    database = tmp_path / "mlflow.db"
    shutil.copy(made / "mlflow.db", database)
    uri = f"sqlite:///{database}"
    monkeypatch.setattr(promote, "measure_candidates", measured)
    settings = config.build({"tracking": {"uri": uri, "model": "streets"}})
    return SimpleNamespace(uri=uri, client=MlflowClient(uri, uri), database=database, config=settings)


def counts(right, seed):
    truths, random = np.random.default_rng(1), np.random.default_rng(seed)
    found = Counts(np.zeros((3, 3), np.int64), np.zeros((NUM_BINS, 3), np.int64))
    for row in range(ROWS):
        truth, guess = truths.integers(0, 3, 400), random.integers(0, 3, 400)
        own = np.bincount(truth * 3 + np.where(random.random(400) < right, truth, guess), minlength=9).reshape(3, 3)
        found.images[row] = ImageCounts.from_confusion(own)
        found.confusion += own
    return found


@lru_cache
def evaluation(version, split):
    found, ids = counts(RIGHT[version], int(version)), {row: f"{split}/{row}" for row in range(ROWS)}
    return Evaluation(
        counts=found,
        results=compute_results(found, CLASSES.names, ids, num_resamples=100),
        ids=ids,
        classes=CLASSES,
        split=split,
        rows=ROWS,
        bad_rows=(),
        root="/data/streets",
        dataset_digest="t3st",
        step=int(version),
        settings=EvalConfig(),
    )


def evidence(version, found):
    return ModelMeasurements(version, CLASSES.names, found.results.scores.miou, found.results.scores.iou, 10.0, 14.0)


def measured(challenger, champion, request, settings):
    split = request.split
    ours = evaluation(challenger.version, split)
    if champion is None:
        return Measurements(evidence(challenger.version, ours), None, None, ours, None)
    theirs = evaluation(champion.version, split)
    comparison = compare(ours.counts, theirs.counts, CLASSES.names, ours.ids, num_resamples=100)
    return Measurements(
        evidence(challenger.version, ours), evidence(champion.version, theirs), comparison, ours, theirs
    )


def promoted(store, version=None, said=None, **told):
    wish = PromotionRequest(
        version,
        EvaluationRequest("/data/streets", "test"),
        PromotionOptions(store.config.promote, **told),
        dry_run=store.config.name == "dry",
    )
    return promote.promote(store.config, wish, (said if said is not None else []).append, timeout_s=0)


def back(store, said=None, **more):
    return rollback(store.config, (said if said is not None else []).append, timeout_s=0, **more)


def aliases(store):
    assert [model.name for model in store.client.search_registered_models()] == ["streets"]
    found = get_aliases(store.client, "streets")
    return found["previous"], found["champion"], found["challenger"]


def audits(store):
    found = store.client.search_runs(["1"], "tags.`segray.kind` = 'promotion'", order_by=["attributes.start_time ASC"])
    return [run.data.tags | {"status": run.info.status} for run in found]


def test_a_better_challenger_is_served_and_why_is_kept(store):
    outcome = promoted(store)
    assert aliases(store) == ("2", "3", None)
    assert outcome.is_moved
    assert outcome.decision.is_passed
    (tags,) = audits(store)
    expected = {"segray.decision": "passed", "segray.moved": "yes", "segray.version": "3", "status": "FINISHED"}
    assert expected.items() <= tags.items()
    run = store.client.get_run(outcome.audit)
    assert run.data.params["champion"] == "2"
    assert run.data.params["promote.max_miou_drop"] == "0.01"
    assert run.data.metrics["test/miou"] == outcome.measurements.challenger.miou
    assert run.data.metrics["champion/test/miou"] == outcome.measurements.champion.miou
    assert run.data.metrics["gain/miou_low"] > 0
    document = json.loads(
        Path(store.client.download_artifacts(outcome.audit, "decision.json", str(store.database.parent))).read_text()
    )
    assert document["measured"]["challenger"]["iou"].keys() == set(CLASSES.names)
    assert [check["is_passed"] for check in document["checks"]] == [True] * 5


def test_the_version_bears_its_decision_and_its_card_the_figures_with_intervals(store):
    outcome = promoted(store)
    version = store.client.get_model_version("streets", "3")
    noted = json.loads(version.tags["segray.promotion"])
    assert (noted["verdict"], noted["champion"], noted["audit"]) == ("passed", "2", outcome.audit)
    assert [check["gate"] for check in noted["checks"]][-2:] == ["mean IoU", "class IoU drop"]
    found = outcome.measurements.evaluation.results
    low, high = found.miou_interval
    assert f"| test | 30 | {found.scores.miou:.4f} | [{low:.4f}, {high:.4f}] |" in version.description
    assert "`t3st`" in version.description


def test_a_worse_one_is_refused_and_that_is_kept_too(store):
    before = aliases(store)
    outcome = promoted(store, "1")
    assert (outcome.plan, outcome.is_moved) == (None, False)
    assert aliases(store) == before
    (tags,) = audits(store)
    assert {"segray.decision": "refused", "segray.moved": "no", "status": "FINISHED"}.items() <= tags.items()
    noted = json.loads(store.client.get_model_version("streets", "1").tags["segray.promotion"])
    assert noted["verdict"] == "refused"
    assert any("difference -" in check["found"] for check in noted["checks"])


def test_a_worse_one_that_is_forced_is_served_and_the_reason_kept(store):
    outcome = promoted(store, "1", is_forced=True, reason="the lens was changed")
    assert aliases(store) == ("2", "1", "3")
    assert not outcome.decision.is_passed
    (tags,) = audits(store)
    assert {"segray.decision": "forced", "segray.moved": "yes"}.items() <= tags.items()
    assert store.client.get_run(outcome.audit).data.params["reason"] == "the lens was changed"
    noted = json.loads(store.client.get_model_version("streets", "1").tags["segray.promotion"])
    assert (noted["verdict"], noted["reason"]) == ("forced", "the lens was changed")


@pytest.mark.parametrize("version", ["1", "3"])
def test_a_dry_run_decides_and_writes_nothing(store, version):
    before = dump(store)
    store.config = store.config.model_copy(update={"name": "dry"})
    outcome = promoted(store, version)
    assert outcome.decision.is_passed == (version == "3") == (outcome.plan is not None)
    assert (outcome.audit, outcome.is_moved) == (None, False)
    assert back(store, dry_run=True).plan.after["champion"] == "1"
    assert dump(store) == before


def dump(store):
    with sqlite3.connect(store.database) as database:
        return list(database.iterdump())


def test_a_dry_run_leaves_an_interrupted_promotion_to_others(store):
    _create_lock(store.client, plan_promotion("streets", get_aliases(store.client, "streets"), "3"))
    before, said = dump(store), []
    store.config = store.config.model_copy(update={"name": "dry"})
    promoted(store, said=said)
    assert "a command without --dry-run completes it" in said[0]
    assert dump(store) == before


def test_the_first_version_is_served_by_its_own_gates_alone(store):
    for alias in ("champion", "previous"):
        store.client.delete_registered_model_alias("streets", alias)
    outcome = promoted(store)
    assert aliases(store) == (None, "3", None)
    assert [check.gate for check in outcome.decision.checks] == ["package integrity"]


def test_a_rollback_serves_again_what_was_served_byte_for_byte(store):
    before = content(store)
    promoted(store)
    assert content(store) != before
    outcome = back(store, reason="complaints")
    assert aliases(store) == (None, "2", None)
    assert content(store) == before
    tags = audits(store)[-1]
    expected = {"segray.decision": "rollback", "segray.moved": "yes", "segray.version": "2", "status": "FINISHED"}
    assert expected.items() <= tags.items()
    assert store.client.get_run(outcome.audit).data.params["reason"] == "complaints"
    noted = json.loads(store.client.get_model_version("streets", "3").tags["segray.rollback"])
    assert (noted["to"], noted["reason"], noted["audit"]) == ("2", "complaints", outcome.audit)
    with pytest.raises(RegistryError, match="no version previous"):
        back(store)


def content(store):
    with open_checkpoint("models:/streets@champion", store.uri) as folder:
        package = folder.parents[1]
        return {path.relative_to(package): path.read_bytes() for path in package.rglob("*") if path.is_file()}


def test_killed_at_any_write_the_same_command_again_ends_with_it_promoted(store, monkeypatch):
    assert _killed_everywhere(store, monkeypatch, lambda: promoted(store), ("2", "3", None), "passed") > 8


def test_a_rollback_killed_at_any_write_and_repeated_goes_back_once(store, monkeypatch):
    assert _killed_everywhere(store, monkeypatch, lambda: back(store), (None, "1", "3"), "rollback") > 8


def _killed_everywhere(store, monkeypatch, command, after, verdict):
    """Kills the command at each of its writes in turn, repeats it, and returns how many there were."""
    downloads = {}

    @contextmanager
    def open_once(reference, uri):  # what was fetched once need not be again
        if reference not in downloads:
            target = Path(tempfile.mkdtemp(dir=store.database.parent))
            downloads[reference] = download_checkpoint(reference, uri, target)
        yield downloads[reference]

    monkeypatch.setattr(promote, "open_checkpoint", open_once)
    start, client, last, is_over = store.database.read_bytes(), store.client, 0, False
    while not is_over:
        last += 1
        store.database.write_bytes(start)
        with monkeypatch.context() as patched:
            dying = Dying(client, last)
            patched.setattr(promote, "connect_mlflow", lambda *_, dying=dying: dying)
            try:
                command()
                is_over = True
            except Killed:
                assert get_aliases(client, "streets")["champion"] in {"2", after[1]}
        if not is_over:
            _repeat(command, is_done=get_aliases(client, "streets")["champion"] == after[1])
        assert aliases(store) == after, last
        moved = [tags["segray.decision"] for tags in audits(store) if tags["segray.moved"] == "yes"]
        assert moved == [verdict], last
        assert {tags["status"] for tags in audits(store)} <= {"FINISHED", "KILLED"}, last
    return last


def _repeat(command, is_done):
    """Gives the command again; where all was done, and only that could not be told any more, it says so."""
    try:
        command()
    except RegistryError as error:
        assert is_done
        assert any(said in str(error) for said in ("has no challenger", "has no version previous"))  # noqa: PT017


def test_an_audit_whose_process_dies_is_ended_by_the_next_promotion_or_rollback(store):
    for command in (lambda: promoted(store, "1"), lambda: back(store)):
        died = subprocess.Popen([sys.executable, "-c", DIE_IN_AUDIT, store.uri], cwd=Path(__file__).parents[2])
        assert died.wait(120) == -signal.SIGKILL
        assert audits(store)[-1]["status"] == "RUNNING"
        command()
        *_, ended, complete = audits(store)
        assert (ended["status"], ended["segray.moved"]) == ("KILLED", "no")
        assert "stopped before the record was complete" in ended["segray.interrupted"]
        assert (complete["status"], "segray.interrupted" in complete) == ("FINISHED", False)


DIE_IN_AUDIT = """
import os, signal, sys
from mlflow.tracking import MlflowClient
from segray.promotion import aliases, audit
from segray.promotion.plan import plan_promotion

class Client(MlflowClient):
    def log_dict(self, *_):
        os.kill(os.getpid(), signal.SIGKILL)

client = Client(sys.argv[1], sys.argv[1])
plan = plan_promotion("streets", aliases.get_aliases(client, "streets"), "3")
with aliases.promotion_lock(client, plan):
    run_id = client.get_model_version("streets", "3").run_id
    audit.write_audit_run(client, audit.AuditEntry("streets", "3", run_id, "passed", {}, {}, 0, {}))
"""


def test_audits_of_other_models_and_complete_ones_are_left_alone(store):
    tags = {"segray.kind": "promotion", "segray.model": "lanes"}
    run_id = store.client.create_run("1", tags=tags).info.run_id
    promoted(store, "1")
    before = audits(store)[-1]
    promoted(store)
    assert store.client.get_run(run_id).info.status == "RUNNING"
    assert before in audits(store)


def test_an_audit_that_the_store_refuses_fails_and_says_why(store, monkeypatch):
    def refused(*_):
        raise OSError("disk full")

    monkeypatch.setattr(MlflowClient, "log_dict", refused)
    with pytest.raises(RegistryError, match="disk full"):
        promoted(store)
    (tags,) = audits(store)
    assert (tags["status"], tags["segray.interrupted"], tags["segray.moved"]) == ("FAILED", "disk full", "no")
    assert aliases(store) == ("1", "2", "3")  # and there is no lock


def test_what_was_interrupted_is_carried_out_and_not_measured_again(store, monkeypatch):
    plan = plan_promotion("streets", get_aliases(store.client, "streets"), "3")
    with pytest.raises(Killed):
        apply_change(Dying(store.client, 3), plan)
    monkeypatch.setattr(promote, "measure_candidates", lambda *_: pytest.fail("measured"))
    said = []
    outcome = promoted(store, said=said)
    assert (outcome.was_recovered, outcome.is_moved) == (True, True)
    assert said[1] == "completed the interrupted promotion: champion is 3, previous is 2."
    assert aliases(store) == ("2", "3", None)


def test_a_promotion_that_others_overtake_is_told_and_kept_as_not_moved(store, monkeypatch):
    def overtaken(*words):
        apply_change(store.client, plan_promotion("streets", get_aliases(store.client, "streets"), "1"))
        return measured(*words)

    monkeypatch.setattr(promote, "measure_candidates", overtaken)
    with pytest.raises(PromotionError, match="champion 2 before, previous 2, champion 1 now"):
        promoted(store)
    assert aliases(store) == ("2", "1", "3")
    assert [tags["segray.moved"] for tags in audits(store)] == ["no"]


@pytest.mark.parametrize(
    ("model", "version", "said"),
    [
        ("lanes", None, r"model lanes does not exist \(registered models: streets\)"),
        ("streets", "9", r"models:/streets/9 .* \(streets has versions 1, 2, 3; aliases: challenger is 3, champion is"),
        ("streets", "2", "version 2 of streets is already the champion; choose another with --version"),
        (
            "streets",
            None,
            r"streets has no challenger; choose a version with --version \(streets has versions 1, 2, 3; aliases: ",
        ),
    ],
)
def test_what_is_not_there_is_told_with_what_is(store, model, version, said):
    if model == "streets" and version is None:
        store.client.delete_registered_model_alias("streets", "challenger")
    tracking = store.config.tracking.model_copy(update={"model": model})
    store.config = store.config.model_copy(update={"tracking": tracking})
    with pytest.raises(RegistryError, match=said):
        promoted(store, version)


def test_a_version_without_files_is_not_gone_back_to(store):
    run = store.client.get_run(store.client.get_model_version("streets", "1").run_id)
    meta = Path(run.info.artifact_uri) / "model" / "data" / "checkpoint" / checkpoint.META
    hidden = meta.rename(meta.parents[3] / "hidden")
    try:
        with pytest.raises(RegistryError, match="models:/streets/1 cannot be loaded: it does not contain .*meta.json"):
            back(store)
    finally:
        hidden.rename(meta)
    assert aliases(store) == ("1", "2", "3")


def test_a_store_that_fails_in_the_middle_is_named(store, monkeypatch):
    def failing(*_):
        raise OSError("disk I/O error")

    monkeypatch.setattr(promote, "record_decision", failing)
    with pytest.raises(RegistryError, match="failed: disk I/O error; repeat the command"):
        promoted(store)


def test_a_champion_whose_files_are_gone_is_replaced_only_by_force(store, monkeypatch):
    fetch, said = open_checkpoint, []

    def fetched(reference, uri):
        if reference.endswith("/2"):
            raise RegistryError("its files are gone.")
        return fetch(reference, uri)

    monkeypatch.setattr(promote, "open_checkpoint", fetched)
    with pytest.raises(RegistryError, match=r"cannot be loaded: its files are gone\. --force promotes without it"):
        promoted(store)
    assert aliases(store) == ("1", "2", "3")
    promoted(store, said=said, is_forced=True, reason="it is all there is")
    assert said == ["the champion cannot be loaded; promoting without a comparison: its files are gone."]
    assert aliases(store) == ("2", "3", None)
