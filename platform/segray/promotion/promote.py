"""Promotion and rollback of model versions.

A promotion recovers an interrupted one, measures the candidates, evaluates the gates, records the decision and moves
the aliases.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from segray.config import Config, paths
from segray.core.errors import RegistryError
from segray.promotion import aliases
from segray.promotion.aliases import CHAMPION, PREVIOUS, AliasChange, Aliases
from segray.promotion.audit import PromotionOptions, record_decision, record_rollback
from segray.promotion.gates import Decision, evaluate_gates
from segray.promotion.measure import Candidate, Measurements, measure_candidates
from segray.tracking.client import UNAVAILABLE, connect_mlflow, error_summary
from segray.tracking.registry import (
    CHALLENGER,
    DIGEST_TAG,
    NOT_FOUND,
    available_hint,
    download_checkpoint,
    resolve_version,
)

Say = Callable[[str], None]
Show = Callable[[Measurements, Decision], None]


@dataclass(frozen=True)
class PromotionRequest:
    """Request for a promotion.

    Attributes:
        version: version number; defaults to the challenger.
        root: root folder of the evaluation dataset.
        split: name of the split.
        options: gates and user options.
        dry_run: True to evaluate the gates without any change to the store.
        workers: number of evaluation tasks; defaults to one per GPU, or one per node without GPUs.
    """

    version: str | None
    root: str
    split: str
    options: PromotionOptions
    dry_run: bool = False
    workers: int | None = None


@dataclass(frozen=True)
class PromotionResult:
    """Result of a promotion or rollback.

    Attributes:
        plan: plan that was carried out, or would be without a dry run; `None` if no alias moves.
        decision: decision of the gates; `None` if they were not evaluated.
        measured: measurements that the gates evaluated.
        audit: id of the audit run; `None` if none was written.
        is_moved: True if the aliases match the plan now.
        was_recovered: True if the call completed an interrupted update instead of a new one.
    """

    plan: AliasChange | None
    decision: Decision | None = None
    measured: Measurements | None = None
    audit: str | None = None
    is_moved: bool = False
    was_recovered: bool = False


def promote(
    config: Config,
    wish: PromotionRequest,
    say: Say,
    show: Show = lambda *_: None,
    patience_s: float = aliases.PATIENCE_S,
) -> PromotionResult:
    """Promotes a version to champion if it passes the gates or the promotion is forced.

    The current champion becomes the previous version, which a rollback restores.

    Args:
        config: settings with the store, the model and the evaluation settings.
        wish: request to carry out.
        say: callable that receives messages for the user.
        show: callable that receives the measurements and the decision before any alias moves.
        patience_s: seconds to wait for a promotion by another process.

    Raises:
        RegistryError: the model or version does not exist, the version has no files or is the champion already, or
            the store does not respond.
        PromotionError: another process moved the aliases meanwhile.
        UserError: the version cannot be evaluated on the data.
    """
    name, uri = config.tracking.model, paths.tracking_uri(config)
    client, finished, found = _begun(name, uri, wish.dry_run, say, patience_s)
    version = wish.version or found[CHALLENGER]
    if finished is not None and finished.what == "promotion" and version in (None, found[CHAMPION]):
        return PromotionResult(finished, is_moved=True, was_recovered=True)
    if version is None:
        raise RegistryError(f"{name} has no {CHALLENGER}; name a version{available_hint(client, f'models:/{name}')}")
    plan = aliases.plan_promotion(name, found, version)
    challenger = _candidate(client, uri, name, version)
    champion = _champion(client, uri, name, found[CHAMPION], wish.options.is_forced, say)
    measured = measure_candidates(challenger, champion, config, wish.root, wish.split, wish.workers)
    decision = evaluate_gates(wish.options.gates, measured.challenger, measured.champion, measured.comparison)
    show(measured, decision)
    if wish.dry_run:
        return PromotionResult(plan if decision.is_passed or wish.options.is_forced else None, decision, measured)
    with _asking(uri):
        audit = record_decision(client, name, challenger, measured, decision, wish.options)
        if not (decision.is_passed or wish.options.is_forced):
            return PromotionResult(None, decision, measured, audit)
        aliases.apply_change(client, replace(plan, audit=audit))
    return PromotionResult(plan, decision, measured, audit, is_moved=True)


def rollback(
    config: Config,
    say: Say,
    reason: str | None = None,
    is_dry: bool = False,
    patience_s: float = aliases.PATIENCE_S,
) -> PromotionResult:
    """Makes the previous version the champion again.

    Args:
        config: settings with the store and the model.
        say: callable that receives messages for the user.
        reason: reason for the record.
        is_dry: True to return the plan without any change to the store.
        patience_s: seconds to wait for a promotion by another process.

    Raises:
        RegistryError: the model does not exist, it has no previous version or that version has no files, or the store
            does not respond.
        PromotionError: another process moved the aliases meanwhile.
    """
    name, uri = config.tracking.model, paths.tracking_uri(config)
    client, finished, found = _begun(name, uri, is_dry, say, patience_s)
    if finished is not None and finished.what == "rollback":
        return PromotionResult(finished, is_moved=True, was_recovered=True)
    plan = aliases.plan_rollback(name, found)
    back = _candidate(client, uri, name, str(plan.wanted[CHAMPION]))
    if is_dry:
        return PromotionResult(plan)
    with _asking(uri):
        audit = record_rollback(client, name, back, found[CHAMPION], reason)
        aliases.apply_change(client, replace(plan, audit=audit))
    return PromotionResult(plan, audit=audit, is_moved=True)


def _begun(
    name: str, uri: str, is_dry: bool, say: Say, patience_s: float
) -> tuple[MlflowClient, AliasChange | None, Aliases]:
    """Returns a client, the interrupted plan that was carried out (or `None`), and the current aliases."""
    client = connect_mlflow(uri, f"model {name}")
    with _asking(uri):
        finished = _repaired(client, name, is_dry, say, patience_s)
        try:
            return client, finished, aliases.get_aliases(client, name)
        except MlflowException as error:
            if error.error_code != NOT_FOUND:
                raise
            raise RegistryError(f"there is no model {name}{available_hint(client, f'models:/{name}')}") from error


def _repaired(client: MlflowClient, name: str, is_dry: bool, say: Say, patience_s: float) -> AliasChange | None:
    plan = aliases.pending_change(client, name)
    if plan is None:
        return None
    if is_dry:
        say(f"a {plan.what} of {name} is under way or was interrupted; the next one without --dry-run looks after it.")
        return None
    say(f"a {plan.what} of {name} is under way or was interrupted; waiting for it up to {patience_s:g} s.")
    finished = aliases.recover(client, name, patience_s)
    if finished is not None:
        told = f"{CHAMPION} is {finished.wanted[CHAMPION]}, {PREVIOUS} {finished.wanted[PREVIOUS] or 'none'}"
        say(f"the interrupted {finished.what} was carried out: {told}.")
    return finished


def _candidate(client: MlflowClient, uri: str, name: str, version: str) -> Candidate:
    reference = f"models:/{name}/{version}"
    folder = download_checkpoint(reference, uri)
    with _asking(uri):
        found = resolve_version(client, reference)
    return Candidate(version, folder, found.tags.get(DIGEST_TAG), found.run_id or None)


def _champion(
    client: MlflowClient, uri: str, name: str, version: str | None, is_forced: bool, say: Say
) -> Candidate | None:
    """Returns the champion to compare with, or `None` if there is none.

    A forced promotion skips a champion whose files are missing.
    """
    if version is None:
        return None
    try:
        return _candidate(client, uri, name, version)
    except RegistryError as error:
        if not is_forced:
            raise RegistryError(f"the champion cannot be compared with: {error} --force promotes without.") from error
        say(f"the champion cannot be compared with: {error}")
        return None


@contextmanager
def _asking(uri: str) -> Iterator[None]:
    """Converts errors of an unavailable store into a RegistryError that names the store."""
    try:
        yield
    except UNAVAILABLE as error:
        raise RegistryError(
            f"MLflow at {paths.redact(uri)} does not answer as it should: {error_summary(error)}; repeat the "
            "command: what was begun is carried out."
        ) from error
