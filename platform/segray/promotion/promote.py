"""A promotion from its beginning to its end: repair, measure, decide, write down, move; and the way back."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from segray import places, registry
from segray.config import Config
from segray.errors import RegistryError
from segray.promotion import moves, record
from segray.promotion.evidence import Candidate, Measured, measure
from segray.promotion.gates import Decision, decide
from segray.promotion.moves import CHAMPION, PREVIOUS, Aliases, Plan
from segray.promotion.record import Told
from segray.registry import CHALLENGER, DIGEST_TAG, MISSING, UNAVAILABLE

Say = Callable[[str], None]
Show = Callable[[Measured, Decision], None]


@dataclass(frozen=True)
class Wish:
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
    told: Told
    is_dry: bool = False
    workers: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of it.

    Attributes:
        plan: whose aliases moved, or would have; none if none did.
        decision: of the gates; none if they were not asked.
        measured: what they were asked with.
        audit: MLflow run; none if none was written.
        is_moved: whether the aliases are as planned now.
        is_finished: whether it was an interrupted one that was carried out.
    """

    plan: Plan | None
    decision: Decision | None = None
    measured: Measured | None = None
    audit: str | None = None
    is_moved: bool = False
    is_finished: bool = False


def promote(
    config: Config, wish: Wish, say: Say, show: Show = lambda *_: None, patience_s: float = moves.PATIENCE_S
) -> Outcome:
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
    name, uri = config.tracking.model, places.tracking_uri(config)
    client, finished, found = _begun(name, uri, wish.is_dry, say, patience_s)
    version = wish.version or found[CHALLENGER]
    if finished is not None and finished.what == "promotion" and version in (None, found[CHAMPION]):
        return Outcome(finished, is_moved=True, is_finished=True)
    if version is None:
        raise RegistryError(f"{name} has no {CHALLENGER}; name a version{registry.known(client, f'models:/{name}')}")
    plan = moves.promotion(name, found, version)
    challenger = _candidate(client, uri, name, version)
    champion = _champion(client, uri, name, found[CHAMPION], wish.told.is_forced, say)
    measured = measure(challenger, champion, config, wish.root, wish.split, wish.workers)
    decision = decide(wish.told.gates, measured.challenger, measured.champion, measured.comparison)
    show(measured, decision)
    if wish.is_dry:
        return Outcome(plan if decision.is_passed or wish.told.is_forced else None, decision, measured)
    with _asking(uri):
        audit = record.decided(client, name, challenger, measured, decision, wish.told)
        if not (decision.is_passed or wish.told.is_forced):
            return Outcome(None, decision, measured, audit)
        moves.carry_out(client, replace(plan, audit=audit))
    return Outcome(plan, decision, measured, audit, is_moved=True)


def rollback(
    config: Config,
    say: Say,
    reason: str | None = None,
    is_dry: bool = False,
    patience_s: float = moves.PATIENCE_S,
) -> Outcome:
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
    name, uri = config.tracking.model, places.tracking_uri(config)
    client, finished, found = _begun(name, uri, is_dry, say, patience_s)
    if finished is not None and finished.what == "rollback":
        return Outcome(finished, is_moved=True, is_finished=True)
    plan = moves.rollback(name, found)
    back = _candidate(client, uri, name, str(plan.wanted[CHAMPION]))
    if is_dry:
        return Outcome(plan)
    with _asking(uri):
        audit = record.rolled_back(client, name, back, found[CHAMPION], reason)
        moves.carry_out(client, replace(plan, audit=audit))
    return Outcome(plan, audit=audit, is_moved=True)


def _begun(name: str, uri: str, is_dry: bool, say: Say, patience_s: float) -> tuple[MlflowClient, Plan | None, Aliases]:
    """Returns a client, what was left to do by an interrupted promotion and is done now, and the aliases."""
    client = registry.connected(uri, f"model {name}")
    with _asking(uri):
        finished = _repaired(client, name, is_dry, say, patience_s)
        try:
            return client, finished, moves.aliases_of(client, name)
        except MlflowException as error:
            if error.error_code != MISSING:
                raise
            raise RegistryError(f"there is no model {name}{registry.known(client, f'models:/{name}')}") from error


def _repaired(client: MlflowClient, name: str, is_dry: bool, say: Say, patience_s: float) -> Plan | None:
    plan = moves.left(client, name)
    if plan is None:
        return None
    if is_dry:
        say(f"a {plan.what} of {name} is under way or was interrupted; the next one without --dry-run looks after it.")
        return None
    say(f"a {plan.what} of {name} is under way or was interrupted; waiting for it up to {patience_s:g} s.")
    finished = moves.repair(client, name, patience_s)
    if finished is not None:
        told = f"{CHAMPION} is {finished.wanted[CHAMPION]}, {PREVIOUS} {finished.wanted[PREVIOUS] or 'none'}"
        say(f"the interrupted {finished.what} was carried out: {told}.")
    return finished


def _candidate(client: MlflowClient, uri: str, name: str, version: str) -> Candidate:
    reference = f"models:/{name}/{version}"
    folder = registry.fetch(reference, uri)
    with _asking(uri):
        found = registry.resolve(client, reference)
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
            f"MLflow at {places.masked(uri)} does not answer as it should: {registry.first_line(error)}; repeat the "
            "command: what was begun is carried out."
        ) from error
