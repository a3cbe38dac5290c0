"""Transactional updates of several registry aliases.

MLflow moves one alias at a time and has no transactions. This module therefore stores a plan before it moves any alias.
The plan is a tag of an additional registered model, which serves as a lock: only one process can create it. If the
process dies, the next process that finds the plan carries it out and removes it.
"""

import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from segray.core.errors import PromotionError, RegistryError
from segray.tracking.registry import CHALLENGER, LOCK, NOT_FOUND

CHAMPION, PREVIOUS = "champion", "previous"
SERVING_ALIASES = (PREVIOUS, CHAMPION)
"""Aliases in the order of their update. At every moment there is a champion and a known version to roll back to."""
PLAN_TAG, MOVED_TAG = "segray.plan", "segray.moved"
PATIENCE_S, POLL_S = 30.0, 0.5
"""Seconds after which the plan of another process counts as abandoned, and seconds between two polls.

An update takes a few seconds.
"""
MISSING_RUN_CODES = (
    "RESOURCE_DOES_NOT_EXIST",
    "INVALID_PARAMETER_VALUE",
)  # MLflow also returns these for a deleted run

Aliases = Mapping[str, str | None]


@dataclass(frozen=True)
class AliasChange:
    """Plan for an update of the serving aliases.

    Attributes:
        what: kind of the update.
        model: name of the registered model.
        found: champion and previous version at the time of the decision; `None` for an alias that was not set.
        wanted: champion and previous version after the update. The new champion loses the challenger alias.
        audit: id of the MLflow run that is tagged when the update is complete; `None` tags no run.
        key: unique key of this plan.
    """

    what: Literal["promotion", "rollback"]
    model: str
    found: Aliases
    wanted: Aliases
    audit: str | None = None
    key: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def stages(self) -> tuple[Aliases, ...]:
        """Alias states before, during and after the update."""
        return self.found, {**self.found, PREVIOUS: self.wanted[PREVIOUS]}, self.wanted


def plan_promotion(model: str, found: Aliases, version: str) -> AliasChange:
    """Returns the plan that makes a version the champion and keeps the current champion as the previous version.

    Raises:
        RegistryError: the version is the champion already.
    """
    if found[CHAMPION] == version:
        raise RegistryError(f"version {version} of {model} is {CHAMPION} already; name another with --version.")
    return AliasChange(
        "promotion", model, _served(found), {PREVIOUS: found[CHAMPION] or found[PREVIOUS], CHAMPION: version}
    )


def plan_rollback(model: str, found: Aliases) -> AliasChange:
    """Returns the plan that makes the previous version the champion again.

    Raises:
        RegistryError: the model has no previous version.
    """
    if found[PREVIOUS] is None:
        raise RegistryError(f"{model} has no version {PREVIOUS}: nothing was promoted over another, or it was undone.")
    return AliasChange("rollback", model, _served(found), {PREVIOUS: None, CHAMPION: found[PREVIOUS]})


def get_aliases(client: MlflowClient, model: str) -> dict[str, str | None]:
    """Returns the version of each alias.

    Raises:
        MlflowException: the model does not exist, or the store does not respond.
    """
    known = client.get_registered_model(model).aliases
    return {alias: None if alias not in known else str(known[alias]) for alias in (*SERVING_ALIASES, CHALLENGER)}


def apply_change(client: MlflowClient, plan: AliasChange) -> None:
    """Carries out a plan.

    Raises:
        PromotionError: the aliases changed after the plan was made, or another process updates them.
        MlflowException: the store does not respond.
    """
    if not _claims(client, plan):
        raise _taken(plan.model)
    found = _served(get_aliases(client, plan.model))
    if found != plan.found:
        _remove(client, plan)
        raise PromotionError(
            f"aliases of {plan.model} moved meanwhile: {_told(plan.found)} before, {_told(found)} now; nothing was "
            "moved; look at it again and repeat."
        )
    _move(client, plan)


def pending_change(client: MlflowClient, model: str) -> AliasChange | None:
    """Returns the plan that is in progress or was interrupted, or `None`.

    Raises:
        RegistryError: an ordinary registered model has the name of the lock.
    """
    try:
        tags = client.get_registered_model(_name(model)).tags
    except MlflowException as error:
        if error.error_code != NOT_FOUND:
            raise
        return None
    if PLAN_TAG not in tags:
        raise RegistryError(f"{_name(model)} is a model of its own, and the lock of {model} needs its name; rename it.")
    return AliasChange(**json.loads(tags[PLAN_TAG]))


def recover(client: MlflowClient, model: str, patience_s: float = PATIENCE_S) -> AliasChange | None:
    """Carries out an interrupted plan and returns it, or returns `None` if there is no plan to carry out.

    Args:
        client: client of the store.
        model: name of the registered model.
        patience_s: seconds to wait for a process that may still carry out the plan.

    Raises:
        PromotionError: another process updates the aliases.
        MlflowException: the store does not respond.
    """
    plan = still = pending_change(client, model)
    until = time.monotonic() + patience_s
    while still is not None and still == plan and time.monotonic() < until:
        time.sleep(POLL_S)
        still = pending_change(client, model)
    if plan is None or still is None:
        return None
    if still != plan:
        raise _taken(model)
    if _served(get_aliases(client, model)) not in plan.stages:  # its process died before it detected the conflict
        _remove(client, plan)
        return None
    if not _is_there(client, model, str(plan.wanted[CHAMPION])):
        _move(client, replace(plan, wanted=plan.found, audit=None))
        return None
    _move(client, plan)
    return plan


def _served(aliases: Aliases) -> dict[str, str | None]:
    return {alias: aliases[alias] for alias in SERVING_ALIASES}


def _name(model: str) -> str:
    return f"{model}{LOCK}"


def _taken(model: str) -> PromotionError:
    return PromotionError(f"{model} is being promoted by somebody else; look at it again and repeat.")


def _claims(client: MlflowClient, plan: AliasChange) -> bool:
    """Creates the lock of a plan. Returns False if a lock exists: a store never has two models of the same name."""
    try:
        client.create_registered_model(_name(plan.model), {PLAN_TAG: json.dumps(asdict(plan))})
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return False
    return True


def _is_there(client: MlflowClient, model: str, version: str) -> bool:
    try:
        client.get_model_version(model, version)
    except MlflowException as error:
        if error.error_code != NOT_FOUND:
            raise
        return False
    return True


def _move(client: MlflowClient, plan: AliasChange) -> None:
    for alias in SERVING_ALIASES:
        _check_held(client, plan)
        _set(client, plan.model, alias, plan.wanted[alias])
    if plan.wanted != plan.found and get_aliases(client, plan.model)[CHALLENGER] == plan.wanted[CHAMPION]:
        _set(client, plan.model, CHALLENGER, None)
    if plan.audit is not None:
        _tell(client, plan.audit)
    _remove(client, plan)


def _check_held(client: MlflowClient, plan: AliasChange) -> None:
    """Raises a PromotionError if another process took the plan for abandoned, carried it out and removed its lock."""
    held = pending_change(client, plan.model)
    if held is None or held.key != plan.key:
        raise _taken(plan.model)


def _set(client: MlflowClient, model: str, alias: str, version: str | None) -> None:
    if version is not None:
        client.set_registered_model_alias(model, alias, version)
    elif get_aliases(client, model)[alias] is not None:
        client.delete_registered_model_alias(model, alias)


def _tell(client: MlflowClient, audit: str) -> None:
    """Tags the audit run with the completed update. A deleted audit run is ignored."""
    try:
        client.set_tag(audit, MOVED_TAG, "yes")
    except MlflowException as error:
        if error.error_code not in MISSING_RUN_CODES:
            raise


def _remove(client: MlflowClient, plan: AliasChange) -> None:
    """Removes the lock, unless it was removed already or belongs to another plan."""
    held = pending_change(client, plan.model)
    if held is None or held.key != plan.key:
        return
    try:
        client.delete_registered_model(_name(plan.model))
    except MlflowException as error:
        if error.error_code != NOT_FOUND:
            raise


def _told(aliases: Aliases) -> str:
    return ", ".join(f"{alias} {version or 'none'}" for alias, version in aliases.items())
