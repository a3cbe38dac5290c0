"""Transactional updates of several registry aliases.

MLflow moves one alias at a time and has no transactions. This module therefore stores a plan before it moves any alias.
The plan is a tag of an additional registered model, which serves as a lock: only one process can create it. If the
process dies, the next process that finds the plan carries it out and removes it.

The lock is held while the decision is recorded, too. A process that dies then leaves a plan without any change, which
the next process removes.

A process that is suspended for longer than `LOCK_TIMEOUT_S` counts as dead, and another process carries out its plan.
MLflow cannot make a move conditional on the lock, so a process checks the lock before and after each move. If it was
suspended between the first check and the move, it finds out after the move and restores the alias from the last
completed update, which is a tag of the model. It does the same if its lock is gone after an earlier move, because a
process that is suspended before it removes its lock may remove that of another process.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from segray.core.errors import PromotionError, RegistryError
from segray.core.parsing import parse_json
from segray.promotion.plan import AliasChange, Aliases, serving_aliases
from segray.tracking.client import ALREADY_EXISTS, NOT_FOUND, UNAVAILABLE
from segray.tracking.tags import CHALLENGER, CHAMPION, LOCK_SUFFIX, MOVED_TAG, PLAN_TAG, SERVING_ALIASES, UPDATE_TAG

LOCK_TIMEOUT_S, POLL_S = 30.0, 0.5
"""Seconds after which the plan of another process counts as abandoned, and seconds between two polls."""
MAX_ATTEMPTS = 3
"""Number of attempts to move the aliases, if another process interferes."""
MISSING_RUN_CODES = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # MLflow returns both for a deleted run


def get_aliases(client: MlflowClient, model: str) -> dict[str, str | None]:
    """Returns the version of each alias.

    Raises:
        MlflowException: the model does not exist, or the store does not respond.
    """
    versions = client.get_registered_model(model).aliases
    return {alias: str(versions[alias]) if alias in versions else None for alias in (*SERVING_ALIASES, CHALLENGER)}


@contextmanager
def promotion_lock(client: MlflowClient, plan: AliasChange) -> Iterator[None]:
    """Holds the lock of a plan, while its decision is recorded and carried out.

    Raises:
        PromotionError: another process updates the aliases.
        MlflowException: the store does not respond.
    """
    recording = replace(plan, after=plan.before)
    if not _create_lock(client, recording):
        raise _locked_error(plan.model)
    try:
        yield
    except (Exception, KeyboardInterrupt):
        with suppress(*UNAVAILABLE):  # the next process removes a lock that remains
            if pending_change(client, plan.model) == recording:  # the next process completes an interrupted move
                _remove_lock(client, plan)
        raise
    _remove_lock(client, plan)


def apply_change(client: MlflowClient, plan: AliasChange) -> None:
    """Carries out a plan. The caller may hold its lock.

    Raises:
        PromotionError: the aliases changed after the plan was made, or another process updates them.
        MlflowException: the store does not respond.
    """
    if not _update_lock(client, plan) and not _create_lock(client, plan):
        raise _locked_error(plan.model)
    current = serving_aliases(get_aliases(client, plan.model))
    if current != plan.before:
        _remove_lock(client, plan)
        raise PromotionError(
            f"the aliases of {plan.model} changed in the meantime: {_format_aliases(plan.before)} before, "
            f"{_format_aliases(current)} now; no alias was moved; check the new champion and repeat the command."
        )
    _move_aliases(client, plan)


def pending_change(client: MlflowClient, model: str) -> AliasChange | None:
    """Returns the plan that is in progress or was interrupted, or `None`.

    Raises:
        RegistryError: an ordinary registered model has the name of the lock, or the plan is damaged.
    """
    try:
        tags = client.get_registered_model(_lock_name(model)).tags
    except MlflowException as error:
        if error.error_code != NOT_FOUND:
            raise
        return None
    if PLAN_TAG not in tags:
        raise RegistryError(
            f"{_lock_name(model)} is an ordinary registered model, but the lock of {model} needs this name; rename it."
        )
    return AliasChange.from_json(tags[PLAN_TAG])


def recover(client: MlflowClient, model: str, timeout_s: float = LOCK_TIMEOUT_S) -> AliasChange | None:
    """Carries out an interrupted plan and returns it, or returns `None` if there is no plan to carry out.

    Args:
        client: client of the store.
        model: name of the registered model.
        timeout_s: seconds to wait for a process that may still carry out the plan.

    Raises:
        PromotionError: another process updates the aliases.
        MlflowException: the store does not respond.
    """
    plan = latest = pending_change(client, model)
    deadline = time.monotonic() + timeout_s
    while latest is not None and latest == plan and time.monotonic() < deadline:
        time.sleep(POLL_S)
        latest = pending_change(client, model)
    if plan is None or latest is None:
        return None
    if latest != plan:
        raise _locked_error(model)
    # The process died while it recorded the decision, or before it detected that the aliases had changed.
    if not plan.moves_aliases or serving_aliases(get_aliases(client, model)) not in plan.steps:
        _remove_lock(client, plan)
        return None
    if not _version_exists(client, model, str(plan.after[CHAMPION])):
        _move_aliases(client, replace(plan, after=plan.before, audit=None))
        return None
    _move_aliases(client, plan)
    return plan


def _lock_name(model: str) -> str:
    return f"{model}{LOCK_SUFFIX}"


def _locked_error(model: str) -> PromotionError:
    return PromotionError(f"another process is promoting {model}; check the aliases of {model} and repeat the command.")


def _create_lock(client: MlflowClient, plan: AliasChange) -> bool:
    """Creates the lock of a plan. Returns False if a lock exists: a store never has two models of the same name."""
    try:
        client.create_registered_model(_lock_name(plan.model), {PLAN_TAG: plan.to_json()})
    except MlflowException as error:
        # MLflow reads the existing model for its message, and does not find a lock that was removed at this moment.
        if error.error_code not in (ALREADY_EXISTS, NOT_FOUND):
            raise
        return False
    return True


def _update_lock(client: MlflowClient, plan: AliasChange) -> bool:
    """Replaces the plan in the lock. Returns False if the lock is not that of the plan."""
    if not _is_locked_by(client, plan):
        return False
    client.set_registered_model_tag(_lock_name(plan.model), PLAN_TAG, plan.to_json())
    return True


def _is_locked_by(client: MlflowClient, plan: AliasChange) -> bool:
    with suppress(RegistryError):  # an ordinary registered model has the name of the lock
        pending = pending_change(client, plan.model)
        return pending is not None and pending.key == plan.key
    return False


def _version_exists(client: MlflowClient, model: str, version: str) -> bool:
    try:
        client.get_model_version(model, version)
    except MlflowException as error:
        if error.error_code != NOT_FOUND:
            raise
        return False
    return True


def _move_aliases(client: MlflowClient, plan: AliasChange) -> None:
    for _ in range(MAX_ATTEMPTS):
        for alias in SERVING_ALIASES:
            _set_alias(client, plan, alias, plan.after[alias])
        if serving_aliases(get_aliases(client, plan.model)) == plan.after:
            break  # otherwise a process that was suspended has moved an alias meanwhile
    if plan.moves_aliases and get_aliases(client, plan.model)[CHALLENGER] == plan.after[CHAMPION]:
        _set_alias(client, plan, CHALLENGER, None)
    _require_lock(client, plan)
    client.set_registered_model_tag(plan.model, UPDATE_TAG, json.dumps(dict(plan.after)))
    if plan.audit is not None:
        _tag_audit(client, plan.audit)
    _remove_lock(client, plan)


def _set_alias(client: MlflowClient, plan: AliasChange, alias: str, version: str | None) -> None:
    """Moves or removes an alias, if this process still holds the lock.

    Raises:
        PromotionError: another process has taken the plan for abandoned and carried it out.
    """
    is_set = get_aliases(client, plan.model)[alias] is not None
    if version is None and not is_set:
        return
    _require_lock(client, plan)
    if version is None:
        client.delete_registered_model_alias(plan.model, alias)
    else:
        client.set_registered_model_alias(plan.model, alias, version)
    if not _is_locked_by(client, plan):
        _undo_late_move(client, plan)
        raise _locked_error(plan.model)


def _require_lock(client: MlflowClient, plan: AliasChange) -> None:
    """Raises PromotionError if the lock is lost. An update that has begun is undone: no plan remains to complete it."""
    if not _is_locked_by(client, plan):
        if serving_aliases(get_aliases(client, plan.model)) != plan.before:
            _undo_late_move(client, plan)
        raise _locked_error(plan.model)


def _undo_late_move(client: MlflowClient, plan: AliasChange) -> None:
    """Restores the aliases of the last completed update, after a move without the lock.

    A process that holds the lock meanwhile compares the aliases with its own plan at its end.
    """
    current = serving_aliases(get_aliases(client, plan.model))
    repair = AliasChange(plan.kind, plan.model, current, current)  # moves nothing if this process dies, too
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while not _create_lock(client, repair):
        if time.monotonic() > deadline:
            return
        time.sleep(POLL_S)
    completed = _completed_aliases(client, plan.model)
    if completed is None:
        _remove_lock(client, repair)
        return
    _move_aliases(client, replace(repair, after=completed))


def _completed_aliases(client: MlflowClient, model: str) -> dict[str, str | None] | None:
    """Returns the aliases after the last completed update, or `None` if the tag is missing or damaged."""
    try:
        completed = parse_json(client.get_registered_model(model).tags.get(UPDATE_TAG, "null"))
        return {alias: None if completed[alias] is None else str(completed[alias]) for alias in SERVING_ALIASES}
    except (ValueError, TypeError, KeyError):
        return None


def _tag_audit(client: MlflowClient, run_id: str) -> None:
    """Tags the audit run with the completed update. A deleted audit run is ignored."""
    try:
        client.set_tag(run_id, MOVED_TAG, "yes")
    except MlflowException as error:
        if error.error_code not in MISSING_RUN_CODES:
            raise


def _remove_lock(client: MlflowClient, plan: AliasChange) -> None:
    """Removes the lock, unless it was removed already or belongs to another plan."""
    if not _is_locked_by(client, plan):
        return
    try:
        client.delete_registered_model(_lock_name(plan.model))
    except MlflowException as error:
        if error.error_code != NOT_FOUND:
            raise


def _format_aliases(aliases: Aliases) -> str:
    return ", ".join(f"{alias} {version or 'none'}" for alias, version in aliases.items())
