"""Transactional updates of several registry aliases.

MLflow moves one alias at a time and has no transactions. This module therefore stores a plan before it moves any alias.
The plan is a tag of an additional registered model, which serves as a lock: only one process can create it. If the
process dies, the next process that finds the plan carries it out and removes it.

The lock is held while the decision is recorded, too. A process that dies then leaves a plan without any change, which
the next process removes.
"""

import json
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from segray.core.errors import PromotionError, RegistryError
from segray.tracking.client import ALREADY_EXISTS, NOT_FOUND, UNAVAILABLE
from segray.tracking.tags import CHALLENGER, CHAMPION, LOCK_SUFFIX, MOVED_TAG, PLAN_TAG, PREVIOUS, SERVING_ALIASES

LOCK_TIMEOUT_S, POLL_S = 30.0, 0.5
"""Seconds after which the plan of another process counts as abandoned, and seconds between two polls."""
MISSING_RUN_CODES = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # MLflow returns both for a deleted run

TAG_KEYS = {"kind": "what", "before": "found", "after": "wanted"}
"""Keys of the plan's tag that differ from the names of the attributes."""

Aliases = Mapping[str, str | None]


@dataclass(frozen=True)
class AliasChange:
    """Plan for an update of the serving aliases.

    Attributes:
        kind: kind of the update.
        model: name of the registered model.
        before: champion and previous version at the time of the decision; `None` for an alias that was not set.
        after: champion and previous version after the update. The new champion loses the challenger alias.
        audit: id of the MLflow run that is tagged when the update is complete; `None` tags no run.
        key: unique key of this plan.
    """

    kind: Literal["promotion", "rollback"]
    model: str
    before: Aliases
    after: Aliases
    audit: str | None = None
    key: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def steps(self) -> tuple[Aliases, ...]:
        """Alias states before, during and after the update."""
        return self.before, {**self.before, PREVIOUS: self.after[PREVIOUS]}, self.after

    @property
    def moves_aliases(self) -> bool:
        """Whether any alias moves. None does while the decision is being recorded."""
        return self.after != self.before

    def to_json(self) -> str:
        """Returns the value of the tag of the lock."""
        values = asdict(self)
        return json.dumps({TAG_KEYS.get(name, name): value for name, value in values.items()})

    @classmethod
    def from_json(cls, text: str) -> "AliasChange":
        """Returns the plan in the tag of a lock."""
        values = json.loads(text)
        return cls(**{name: values.pop(key) for name, key in TAG_KEYS.items()}, **values)


def plan_promotion(model: str, current: Aliases, version: str) -> AliasChange:
    """Returns the plan that makes a version the champion and keeps the current champion as the previous version.

    Raises:
        RegistryError: the version is the champion already.
    """
    if current[CHAMPION] == version:
        raise RegistryError(f"version {version} of {model} is already the {CHAMPION}; choose another with --version.")
    after = {PREVIOUS: current[CHAMPION] or current[PREVIOUS], CHAMPION: version}
    return AliasChange("promotion", model, _serving_aliases(current), after)


def plan_rollback(model: str, current: Aliases) -> AliasChange:
    """Returns the plan that makes the previous version the champion again.

    Raises:
        RegistryError: the model has no previous version.
    """
    if current[PREVIOUS] is None:
        raise RegistryError(
            f"{model} has no version {PREVIOUS}: no champion was replaced, or its replacement was rolled back already."
        )
    return AliasChange("rollback", model, _serving_aliases(current), {PREVIOUS: None, CHAMPION: current[PREVIOUS]})


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
    current = _serving_aliases(get_aliases(client, plan.model))
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
        RegistryError: an ordinary registered model has the name of the lock.
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
    if not plan.moves_aliases or _serving_aliases(get_aliases(client, model)) not in plan.steps:
        _remove_lock(client, plan)
        return None
    if not _version_exists(client, model, str(plan.after[CHAMPION])):
        _move_aliases(client, replace(plan, after=plan.before, audit=None))
        return None
    _move_aliases(client, plan)
    return plan


def _serving_aliases(aliases: Aliases) -> dict[str, str | None]:
    return {alias: aliases[alias] for alias in SERVING_ALIASES}


def _lock_name(model: str) -> str:
    return f"{model}{LOCK_SUFFIX}"


def _locked_error(model: str) -> PromotionError:
    return PromotionError(f"another process is promoting {model}; check its aliases and repeat the command.")


def _create_lock(client: MlflowClient, plan: AliasChange) -> bool:
    """Creates the lock of a plan. Returns False if a lock exists: a store never has two models of the same name."""
    try:
        client.create_registered_model(_lock_name(plan.model), {PLAN_TAG: plan.to_json()})
    except MlflowException as error:
        if error.error_code != ALREADY_EXISTS:
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
    for alias in SERVING_ALIASES:
        # Another process may have taken the plan for abandoned, carried it out and removed its lock.
        if not _is_locked_by(client, plan):
            raise _locked_error(plan.model)
        _set_alias(client, plan.model, alias, plan.after[alias])
    if plan.moves_aliases and get_aliases(client, plan.model)[CHALLENGER] == plan.after[CHAMPION]:
        _set_alias(client, plan.model, CHALLENGER, None)
    if plan.audit is not None:
        _tag_audit(client, plan.audit)
    _remove_lock(client, plan)


def _set_alias(client: MlflowClient, model: str, alias: str, version: str | None) -> None:
    if version is not None:
        client.set_registered_model_alias(model, alias, version)
    elif get_aliases(client, model)[alias] is not None:
        client.delete_registered_model_alias(model, alias)


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
