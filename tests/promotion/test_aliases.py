"""Aliases move together or not at all: by one of several at once, and to the end wherever its process died."""

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from segray.core.errors import PromotionError, RegistryError
from segray.promotion.aliases import (
    _create_lock,
    _move_aliases,
    _remove_lock,
    _undo_late_move,
    apply_change,
    get_aliases,
    pending_change,
    promotion_lock,
    recover,
    time,
)
from segray.promotion.plan import AliasChange, plan_promotion, plan_rollback
from segray.tracking.tags import LOCK_SUFFIX, MOVED_TAG, PLAN_TAG, UPDATE_TAG
from tests.promotion.conftest import Dying, Killed


def planned(client, version="3"):
    return plan_promotion("streets", get_aliases(client, "streets"), version)


def planned_back(client):
    return plan_rollback("streets", get_aliases(client, "streets"))


def test_the_challenger_becomes_champion_and_the_champion_previous(store, served):
    apply_change(store.client, planned(store.client))
    assert served(store.client) == ("2", "3", None)


def test_a_challenger_that_is_not_the_one_promoted_stays(store, served):
    store.client.create_model_version("streets", str(store.place))
    store.client.set_registered_model_alias("streets", "challenger", "4")
    apply_change(store.client, planned(store.client))
    assert served(store.client) == ("2", "3", "4")


def test_the_first_champion_has_no_version_before_it(store, served):
    for alias in ("champion", "previous"):
        store.client.delete_registered_model_alias("streets", alias)
    apply_change(store.client, planned(store.client))
    assert served(store.client) == (None, "3", None)
    with pytest.raises(RegistryError, match="no version previous"):
        planned_back(store.client)


def test_a_rollback_undoes_a_promotion_once(store, served):
    apply_change(store.client, planned(store.client))
    apply_change(store.client, planned_back(store.client))
    assert served(store.client) == (None, "2", None)
    with pytest.raises(RegistryError, match="no version previous"):
        planned_back(store.client)


def test_a_champion_is_not_promoted_again(store):
    with pytest.raises(RegistryError, match="version 2 of streets is already the champion"):
        planned(store.client, "2")


@pytest.mark.parametrize("plan_of", [planned, planned_back])
def test_killed_at_any_step_the_next_one_moves_the_rest(store, served, plan_of):
    before = served(store.client)
    apply_change(store.client, plan_of(store.client))
    after, last = served(store.client), 0
    while True:
        _reset(store.client, before)
        last += 1
        try:
            apply_change(Dying(store.client, last), plan_of(store.client))
        except Killed:
            assert get_aliases(store.client, "streets")["champion"] in {before[1], after[1]}
        else:
            break
        recover(store.client, "streets", 0)
        assert served(store.client) == after, last
    assert last > 4


def _reset(client, aliases):
    for alias, version in zip(("previous", "champion", "challenger"), aliases, strict=True):
        if version is None:
            client.delete_registered_model_alias("streets", alias)
        else:
            client.set_registered_model_alias("streets", alias, version)


def _half_moved(store, last=2):
    with pytest.raises(Killed):
        apply_change(Dying(store.client, last), planned(store.client))


def test_a_repair_that_is_killed_is_repaired(store, served):
    for last in range(1, 5):
        _reset(store.client, ("1", "2", "3"))
        _half_moved(store)
        with pytest.raises(Killed):
            recover(Dying(store.client, last), "streets", 0)
        recover(store.client, "streets", 0)
        assert served(store.client) == ("2", "3", None)


def test_a_process_that_really_dies_between_two_aliases_leaves_a_plan_that_others_carry_out(store, served):
    code = f"from tests.promotion.test_aliases import die_half_way; die_half_way({store.uri!r})"
    died = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], timeout=60, check=False)
    assert died.returncode == 9
    assert get_aliases(store.client, "streets")["previous"] == "2"
    assert get_aliases(store.client, "streets")["champion"] == "2"
    assert recover(store.client, "streets", 0).after["champion"] == "3"
    assert served(store.client) == ("2", "3", None)


def die_half_way(uri):
    client = MlflowClient(uri, uri)
    try:
        apply_change(Dying(client, 2), planned(client))
    except Killed:
        os._exit(9)


def test_of_two_at_once_one_wins_and_the_other_is_told(store, served):
    store.client.create_model_version("streets", str(store.place))
    clients = [MlflowClient(store.uri, store.uri) for _ in range(2)]
    plans = [planned(client, version) for client, version in zip(clients, ("3", "4"), strict=True)]
    barrier, told = threading.Barrier(2), []

    def go(client, plan):
        barrier.wait()
        try:
            apply_change(client, plan)
        except PromotionError as error:
            told.append(str(error))

    threads = [threading.Thread(target=go, args=pair) for pair in zip(clients, plans, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(told) == 1
    assert "check the aliases of streets and repeat" in told[0]
    previous, champion, _ = served(store.client)
    assert (previous, champion) in {("2", "3"), ("2", "4")}


def test_who_is_late_by_a_whole_promotion_is_told_what_moved(store, served):
    late = planned(store.client, "1")
    apply_change(store.client, planned(store.client))
    with pytest.raises(PromotionError, match="previous 1, champion 2 before, previous 2, champion 3 now"):
        apply_change(store.client, late)
    assert served(store.client) == ("2", "3", None)


def test_who_finds_somebody_at_it_is_told_and_moves_nothing(store):
    _half_moved(store)
    found = get_aliases(store.client, "streets")
    with pytest.raises(PromotionError, match="another process is promoting"):
        apply_change(store.client, planned(store.client, "3"))
    assert get_aliases(store.client, "streets") == found
    assert pending_change(store.client, "streets") is not None


def test_somebody_at_work_is_waited_for(store, served, monkeypatch):
    plan = planned(store.client)
    _create_lock(store.client, plan)
    monkeypatch.setattr(time, "sleep", lambda _: _move_aliases(store.client, plan))
    assert recover(store.client, "streets", 60) is None
    assert served(store.client) == ("2", "3", None)


def test_somebody_who_takes_over_meanwhile_is_left_at_it(store, monkeypatch):
    first = planned(store.client)
    _create_lock(store.client, first)

    def taken(_):
        _remove_lock(store.client, first)
        store.client.set_registered_model_alias("streets", "champion", "1")
        _create_lock(store.client, planned(store.client))

    monkeypatch.setattr(time, "sleep", taken)
    with pytest.raises(PromotionError, match="another process is promoting"):
        recover(store.client, "streets", 60)
    assert pending_change(store.client, "streets") is not None


def test_who_was_taken_for_dead_moves_nothing_when_it_wakes(store, served):
    asleep = planned(store.client)
    _create_lock(store.client, asleep)
    recover(store.client, "streets", 0)
    apply_change(store.client, planned_back(store.client))
    with pytest.raises(PromotionError, match="another process is promoting"):
        _move_aliases(store.client, asleep)
    assert served(store.client) == (None, "2", None)


def test_the_lock_of_another_is_not_given_back(store):
    held = planned(store.client)
    _create_lock(store.client, held)
    _remove_lock(store.client, replace(held, key="another"))
    assert pending_change(store.client, "streets") == held


def test_a_plan_that_the_aliases_have_left_behind_is_dropped(store, served):
    _create_lock(store.client, planned(store.client))
    store.client.set_registered_model_alias("streets", "champion", "1")
    assert recover(store.client, "streets", 0) is None
    assert served(store.client) == ("1", "1", "3")


def test_a_plan_for_a_version_that_was_deleted_is_undone(store, served):
    _half_moved(store)
    store.client.delete_model_version("streets", "3")
    assert recover(store.client, "streets", 0) is None
    assert served(store.client) == ("1", "2", None)


def test_an_audit_is_told_before_the_lock_is_given_back_and_a_deleted_one_is_no_matter(store, served):
    run = store.client.create_run("0").info.run_id
    with pytest.raises(Killed):
        apply_change(Dying(store.client, 6), replace(planned(store.client), audit=run))
    assert store.client.get_run(run).data.tags[MOVED_TAG] == "yes"
    assert pending_change(store.client, "streets") is not None
    store.client.delete_run(run)
    assert recover(store.client, "streets", 0) is not None
    assert served(store.client) == ("2", "3", None)


def test_a_model_of_somebodys_that_bears_the_locks_name_is_left_alone(store):
    store.client.create_registered_model(f"streets{LOCK_SUFFIX}")
    with pytest.raises(RegistryError, match="streets.promotion is an ordinary registered model"):
        recover(store.client, "streets", 0)
    with pytest.raises(PromotionError):
        apply_change(store.client, planned(store.client))
    assert store.client.get_registered_model(f"streets{LOCK_SUFFIX}")


def test_a_lock_that_records_a_decision_moves_nothing_and_keeps_others_out(store, served):
    plan = planned(store.client)
    with promotion_lock(store.client, plan):
        with pytest.raises(PromotionError, match="another process is promoting"):
            apply_change(store.client, planned(store.client, "1"))
        assert not pending_change(store.client, "streets").moves_aliases
        apply_change(store.client, plan)
    assert served(store.client) == ("2", "3", None)


def test_a_lock_whose_process_died_while_it_recorded_is_dropped(store, served):
    with pytest.raises(Killed), promotion_lock(store.client, planned(store.client)):
        raise Killed
    assert pending_change(store.client, "streets") is not None
    assert recover(store.client, "streets", 0) is None
    assert served(store.client) == ("1", "2", "3")


def test_a_lock_is_removed_when_recording_fails_and_kept_when_moving_fails(store, served, monkeypatch):
    plan = planned(store.client)
    with pytest.raises(OSError, match="full"), promotion_lock(store.client, plan):
        raise OSError("full")
    assert served(store.client) == ("1", "2", "3")
    monkeypatch.setattr(store.client, "set_registered_model_alias", interrupted)
    with pytest.raises(KeyboardInterrupt), promotion_lock(store.client, plan):
        apply_change(store.client, plan)
    monkeypatch.undo()
    assert recover(store.client, "streets", 0) == plan
    assert served(store.client) == ("2", "3", None)


def interrupted(*_):
    raise KeyboardInterrupt


def test_a_plan_has_the_keys_of_earlier_releases(store):
    plan = planned(store.client)
    assert json.loads(plan.to_json()).keys() == {"what", "model", "found", "wanted", "audit", "key"}
    assert AliasChange.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"what": "promotion"}', "[" * 5000])
def test_a_damaged_plan_is_refused_with_one_sentence(store, served, text):
    store.client.create_registered_model(f"streets{LOCK_SUFFIX}", {PLAN_TAG: text})
    with pytest.raises(RegistryError, match="the lock of a promotion contains no valid plan"):
        recover(store.client, "streets", 0)
    with pytest.raises(PromotionError, match="another process is promoting"):
        apply_change(store.client, planned(store.client))
    store.client.delete_registered_model(f"streets{LOCK_SUFFIX}")
    assert served(store.client) == ("1", "2", "3")


@pytest.mark.parametrize("text", ["{", "[]", "null", '{"champion": "2"}'])
def test_a_late_move_is_not_undone_with_a_damaged_record(store, served, text):
    store.client.set_registered_model_tag("streets", UPDATE_TAG, text)
    _undo_late_move(store.client, planned(store.client))
    assert served(store.client) == ("1", "2", "3")
