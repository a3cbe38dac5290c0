"""A process that is suspended between its check of the lock and a move changes nothing in the end."""

import threading

import pytest
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore
from mlflow.tracking import MlflowClient
from sqlalchemy import text

from segray.core.errors import PromotionError
from segray.promotion.aliases import apply_change, get_aliases, promotion_lock, recover
from segray.promotion.plan import plan_promotion, plan_rollback

MOVES = ("set_registered_model_alias", "delete_registered_model_alias")


class Suspended:
    """A client that waits in front of its n-th call of some methods, by default moves of an alias."""

    def __init__(self, uri, move, wait, methods=MOVES):
        self._client, self._left, self._wait, self._methods = MlflowClient(uri, uri), move, wait, methods
        self.has_moved = threading.Event()

    def __getattr__(self, name):
        found = getattr(self._client, name)
        return found if name not in self._methods else lambda *words: self._move(found, *words)

    def _move(self, found, *words):
        self._left -= 1
        if self._left == 0:
            self._wait()
        result = found(*words)
        if self._left == 0:
            self.has_moved.set()
        return result


def suspended_promotion(store, move, methods=MOVES):
    """Starts a promotion of version 3 that waits in front of a move.

    Returns a function that lets it make the move, and one that returns its errors once it has ended.
    """
    waits, proceed, errors = threading.Event(), threading.Event(), []

    def wait():
        waits.set()
        assert proceed.wait(60)

    client = Suspended(store.uri, move, wait, methods)

    def promote():
        try:
            apply_change(client, plan_promotion("streets", get_aliases(client, "streets"), "3"))
        except PromotionError as error:
            errors.append(str(error))

    thread = threading.Thread(target=promote)
    thread.start()
    assert waits.wait(60)

    def make_move():
        proceed.set()
        assert client.has_moved.wait(60)

    def resume():
        proceed.set()
        thread.join(60)
        assert not thread.is_alive()
        return errors

    return make_move, resume


@pytest.mark.parametrize("move", [1, 2, 3])
@pytest.mark.parametrize("other", ["rollback", "promotion"])
def test_a_move_after_the_update_of_another_process_is_undone(store, served, move, other):
    _, resume = suspended_promotion(store, move)
    assert recover(store.client, "streets", 0) is not None  # another process takes the first one for dead
    current = get_aliases(store.client, "streets")
    plan = plan_rollback("streets", current) if other == "rollback" else plan_promotion("streets", current, "1")
    apply_change(store.client, plan)
    expected = served(store.client)
    assert expected == {"rollback": (None, "2", None), "promotion": ("3", "1", None)}[other]
    (error,) = resume()
    assert "another process is promoting streets" in error
    assert served(store.client) == expected


@pytest.mark.parametrize("move", [1, 2])
def test_a_move_into_the_update_of_another_process_is_overwritten(store, served, move):
    make_move, resume = suspended_promotion(store, move)
    assert recover(store.client, "streets", 0) is not None
    # The rollback has removed the alias previous, and stands in front of the alias champion.
    client = Suspended(store.uri, 2, make_move)
    apply_change(client, plan_rollback("streets", get_aliases(client, "streets")))
    assert len(resume()) == 1
    assert served(store.client) == (None, "2", None)


class InterruptedRollback:
    """A client that calls a function between its first move and the check in front of its second."""

    def __init__(self, uri, interrupt):
        self._client, self._interrupt, self._has_moved = MlflowClient(uri, uri), interrupt, False

    def __getattr__(self, name):
        return getattr(self._client, name)

    def delete_registered_model_alias(self, model, alias):
        self._client.delete_registered_model_alias(model, alias)
        self._has_moved = True

    def get_registered_model(self, name):
        if self._has_moved and name == "streets":
            self._has_moved = False
            self._interrupt()
        return self._client.get_registered_model(name)


def test_a_rollback_whose_lock_is_removed_by_a_suspended_process_between_its_moves_is_undone(store, served):
    make_removal, resume = suspended_promotion(store, 1, ("delete_registered_model",))
    assert recover(store.client, "streets", 0) is not None
    before = served(store.client)
    client = InterruptedRollback(store.uri, make_removal)
    plan = plan_rollback("streets", get_aliases(client, "streets"))
    with pytest.raises(PromotionError, match="another process is promoting streets"):
        apply_change(client, plan)
    assert not resume()
    assert served(store.client) == before == ("2", "3", None)


def test_a_suspended_process_whose_plan_was_carried_out_and_nothing_else_changes_nothing(store, served):
    _, resume = suspended_promotion(store, 2)
    recover(store.client, "streets", 0)
    assert len(resume()) == 1
    assert served(store.client) == ("2", "3", None)


def test_a_lock_that_is_removed_while_another_process_tries_to_create_it_is_held_by_the_other(store, monkeypatch):
    """MLflow reads the existing model after it has failed to create one of the same name, and then may find none."""
    plan = plan_promotion("streets", get_aliases(store.client, "streets"), "3")
    read = SqlAlchemyStore.get_registered_model

    def remove_and_read(registry, name):
        with registry.ManagedSessionMaker(read_only=False) as session:
            session.execute(text("DELETE FROM registered_model_tags WHERE name = :name"), {"name": name})
            session.execute(text("DELETE FROM registered_models WHERE name = :name"), {"name": name})
        return read(registry, name)

    with promotion_lock(store.client, plan):
        monkeypatch.setattr(SqlAlchemyStore, "get_registered_model", remove_and_read)
        with (
            pytest.raises(PromotionError, match="another process is promoting streets"),
            promotion_lock(store.client, plan),
        ):
            raise AssertionError("two processes hold the lock")
        monkeypatch.undo()
