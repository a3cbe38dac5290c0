"""Moving aliases: several at once, by one process at a time, and to the end even if that process dies on the way.

MLflow moves one alias at a time and knows no transactions. So what is to be moved is written down first, under a name
that only one process can create: a registered model beside the one that is promoted. Whoever finds it there and nobody
at work on it moves what it says, and removes it.
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
"""In the order they are moved: at every moment somebody is champion, and the one to go back to is known."""

PLAN_TAG, MOVED_TAG = "segray.plan", "segray.moved"

PATIENCE_S, POLL_S = 30.0, 0.5
"""After so long somebody else's plan is taken for one that nobody is at work on: to move its aliases takes seconds."""

MISSING_RUN_CODES = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # of a run that was deleted, too

Aliases = Mapping[str, str | None]


@dataclass(frozen=True)
class AliasChange:
    """What is to be moved.

    Attributes:
        what: is done.
        model: registered model.
        found: champion and previous version when it was decided, none for an alias that was not set.
        wanted: what they are to be; whoever becomes champion is no challenger any more.
        audit: MLflow run that is told when it is done; none tells nobody.
        key: of this plan alone.
    """

    what: Literal["promotion", "rollback"]
    model: str
    found: Aliases
    wanted: Aliases
    audit: str | None = None
    key: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def stages(self) -> tuple[Aliases, ...]:
        """What the aliases are before it is carried out, on the way, and behind it."""
        return self.found, {**self.found, PREVIOUS: self.wanted[PREVIOUS]}, self.wanted


def plan_promotion(model: str, found: Aliases, version: str) -> AliasChange:
    """Returns the plan that has a version served, and the champion of now as the one to go back to.

    Raises:
        RegistryError: it is served already.
    """
    if found[CHAMPION] == version:
        raise RegistryError(f"version {version} of {model} is {CHAMPION} already; name another with --version.")
    return AliasChange(
        "promotion", model, _served(found), {PREVIOUS: found[CHAMPION] or found[PREVIOUS], CHAMPION: version}
    )


def plan_rollback(model: str, found: Aliases) -> AliasChange:
    """Returns the plan that has the version before served again.

    Raises:
        RegistryError: there is none.
    """
    if found[PREVIOUS] is None:
        raise RegistryError(f"{model} has no version {PREVIOUS}: nothing was promoted over another, or it was undone.")
    return AliasChange("rollback", model, _served(found), {PREVIOUS: None, CHAMPION: found[PREVIOUS]})


def get_aliases(client: MlflowClient, model: str) -> dict[str, str | None]:
    """Returns the version behind each alias.

    Raises:
        MlflowException: there is no such model, or the store does not answer.
    """
    known = client.get_registered_model(model).aliases
    return {alias: None if alias not in known else str(known[alias]) for alias in (*SERVING_ALIASES, CHALLENGER)}


def apply_change(client: MlflowClient, plan: AliasChange) -> None:
    """Moves the aliases of a plan.

    Raises:
        PromotionError: they were moved since it was decided, or somebody else is at it.
        MlflowException: the store does not answer.
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
    """Returns the plan that somebody is at work on, or was interrupted at; none if there is none.

    Raises:
        RegistryError: what bears the lock's name is a model of somebody's.
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
    """Carries out a plan that somebody was interrupted at, and returns it; none if there was nothing to carry out.

    Args:
        client: of the store.
        model: registered model.
        patience_s: how long somebody who may be at work on it is waited for.

    Raises:
        PromotionError: somebody is at it right now.
        MlflowException: the store does not answer.
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
    if _served(get_aliases(client, model)) not in plan.stages:  # its process died before it found that out
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
    """Writes a plan down, unless there is one already; a store never has two models of a name."""
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
    """Refuses to go on with a plan that others took for left behind: they carried it out, and may be at the next."""
    held = pending_change(client, plan.model)
    if held is None or held.key != plan.key:
        raise _taken(plan.model)


def _set(client: MlflowClient, model: str, alias: str, version: str | None) -> None:
    if version is not None:
        client.set_registered_model_alias(model, alias, version)
    elif get_aliases(client, model)[alias] is not None:
        client.delete_registered_model_alias(model, alias)


def _tell(client: MlflowClient, audit: str) -> None:
    """Writes into the audit that the aliases moved; one that somebody deleted is no reason not to have moved them."""
    try:
        client.set_tag(audit, MOVED_TAG, "yes")
    except MlflowException as error:
        if error.error_code not in MISSING_RUN_CODES:
            raise


def _remove(client: MlflowClient, plan: AliasChange) -> None:
    """Gives the lock back, unless somebody else did and another has it now."""
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
