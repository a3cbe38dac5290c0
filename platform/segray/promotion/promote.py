"""A promotion from its beginning to its end: repair, measure, decide, write down, move; and the way back."""

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
    """What is to be promoted.

    Attributes:
        version: its number; none takes the challenger.
        root: of the dataset it is judged on.
        split: of the dataset.
        told: the gates, and what the user says to them.
        is_dry: whether it is only decided, and nothing written.
        workers: tasks that share the rows; none takes one a GPU, or one a node.
    """

    version: str | None
    root: str
    split: str
    told: PromotionOptions
    is_dry: bool = False
    workers: int | None = None


@dataclass(frozen=True)
class PromotionResult:
    """What became of it.

    Attributes:
        plan: whose aliases moved, or would have; none if none did.
        decision: of the gates; none if they were not asked.
        measured: what they were asked with.
        audit: MLflow run; none if none was written.
        is_moved: whether the aliases are as planned now.
        is_finished: whether it was an interrupted one that was carried out.
    """

    plan: AliasChange | None
    decision: Decision | None = None
    measured: Measurements | None = None
    audit: str | None = None
    is_moved: bool = False
    is_finished: bool = False


def promote(
    config: Config,
    wish: PromotionRequest,
    say: Say,
    show: Show = lambda *_: None,
    patience_s: float = aliases.PATIENCE_S,
) -> PromotionResult:
    """Has a version served, if it passes the gates or is forced to; the champion is kept to go back to.

    Args:
        config: names the store, the model, its gates, and how images are looked at.
        wish: what is to be promoted.
        say: called with the few lines a person should read.
        show: called with what was measured and decided, before anything is moved.
        patience_s: how long somebody else's promotion is waited for.

    Raises:
        RegistryError: no such model or version, it has no files, it is served already, or the store does not answer.
        PromotionError: somebody else promoted meanwhile.
        UserError: the version cannot be evaluated on the data.
    """
    name, uri = config.tracking.model, paths.tracking_uri(config)
    client, finished, found = _begun(name, uri, wish.is_dry, say, patience_s)
    version = wish.version or found[CHALLENGER]
    if finished is not None and finished.what == "promotion" and version in (None, found[CHAMPION]):
        return PromotionResult(finished, is_moved=True, is_finished=True)
    if version is None:
        raise RegistryError(f"{name} has no {CHALLENGER}; name a version{available_hint(client, f'models:/{name}')}")
    plan = aliases.plan_promotion(name, found, version)
    challenger = _candidate(client, uri, name, version)
    champion = _champion(client, uri, name, found[CHAMPION], wish.told.is_forced, say)
    measured = measure_candidates(challenger, champion, config, wish.root, wish.split, wish.workers)
    decision = evaluate_gates(wish.told.gates, measured.challenger, measured.champion, measured.comparison)
    show(measured, decision)
    if wish.is_dry:
        return PromotionResult(plan if decision.is_passed or wish.told.is_forced else None, decision, measured)
    with _asking(uri):
        audit = record_decision(client, name, challenger, measured, decision, wish.told)
        if not (decision.is_passed or wish.told.is_forced):
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
    """Has the version before served again.

    Args:
        config: names the store and the model.
        say: called with the few lines a person should read.
        reason: why, for the record.
        is_dry: whether nothing is moved.
        patience_s: how long somebody else's promotion is waited for.

    Raises:
        RegistryError: no such model, no version before or without its files, or the store does not answer.
        PromotionError: somebody else promoted meanwhile.
    """
    name, uri = config.tracking.model, paths.tracking_uri(config)
    client, finished, found = _begun(name, uri, is_dry, say, patience_s)
    if finished is not None and finished.what == "rollback":
        return PromotionResult(finished, is_moved=True, is_finished=True)
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
    """Returns a client, what was left to do by an interrupted promotion and is done now, and the aliases."""
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
    """Returns who is to be compared with; one whose files are gone is passed over where that is forced."""
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
    """Says of a store that does not answer which it is."""
    try:
        yield
    except UNAVAILABLE as error:
        raise RegistryError(
            f"MLflow at {paths.redact(uri)} does not answer as it should: {error_summary(error)}; repeat the "
            "command: what was begun is carried out."
        ) from error
