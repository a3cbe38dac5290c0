"""Promotion and rollback of model versions.

A promotion recovers an interrupted one, measures the candidates, evaluates the gates, records the decision and moves
the aliases.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from segray.config import Config, paths
from segray.core.errors import RegistryError
from segray.evaluation.evaluate import EvaluationRequest
from segray.promotion import aliases
from segray.promotion.audit import PromotionOptions, end_interrupted_audits, record_decision, record_rollback
from segray.promotion.gates import Decision, evaluate_gates
from segray.promotion.measure import Candidate, Measurements, measure_candidates
from segray.promotion.plan import AliasChange, Aliases, plan_promotion, plan_rollback
from segray.tracking.client import NOT_FOUND, UNAVAILABLE, connect_mlflow, error_summary
from segray.tracking.registry import available_hint, open_checkpoint, resolve_version
from segray.tracking.tags import CHALLENGER, CHAMPION, DIGEST_TAG, PREVIOUS

Log = Callable[[str], None]
ShowDecision = Callable[[Measurements, Decision], None]


@dataclass(frozen=True)
class PromotionRequest:
    """Request for a promotion.

    Attributes:
        version: version number; defaults to the challenger.
        evaluation: split, settings and resources of the evaluation.
        options: gates and user options.
        dry_run: True to evaluate the gates without any change to the store.
    """

    version: str | None
    evaluation: EvaluationRequest
    options: PromotionOptions
    dry_run: bool = False


@dataclass(frozen=True)
class PromotionResult:
    """Result of a promotion or rollback.

    Attributes:
        plan: plan that was carried out, or would be without a dry run; `None` if no alias moves.
        decision: decision of the gates; `None` if they were not evaluated.
        measurements: measurements that the gates evaluated.
        audit: id of the audit run; `None` if none was written.
        is_moved: True if the aliases match the plan now.
        was_recovered: True if the call completed an interrupted update instead of a new one.
    """

    plan: AliasChange | None
    decision: Decision | None = None
    measurements: Measurements | None = None
    audit: str | None = None
    is_moved: bool = False
    was_recovered: bool = False


def promote(
    config: Config,
    request: PromotionRequest,
    log: Log,
    show: ShowDecision = lambda *_: None,
    timeout_s: float = aliases.LOCK_TIMEOUT_S,
) -> PromotionResult:
    """Promotes a version to champion if it passes the gates or the promotion is forced.

    The current champion becomes the previous version, which a rollback restores.

    Args:
        config: settings with the store and the model.
        request: request to carry out.
        log: callable that receives messages for the user.
        show: callable that receives the measurements and the decision before any alias moves.
        timeout_s: seconds to wait for a promotion by another process.

    Raises:
        RegistryError: the model or version does not exist, the version has no files or is the champion already, or
            the store does not respond.
        PromotionError: another process moved the aliases meanwhile.
        UserError: the version cannot be evaluated on the data.
    """
    name, uri, options = config.tracking.model, paths.tracking_uri(config), request.options
    client, recovered, current = _open_model(name, uri, request.dry_run, log, timeout_s)
    version = request.version or current[CHALLENGER]
    if recovered is not None and recovered.kind == "promotion" and version in (None, current[CHAMPION]):
        return PromotionResult(recovered, is_moved=True, was_recovered=True)
    if version is None:
        hint = available_hint(client, f"models:/{name}")
        raise RegistryError(f"{name} has no {CHALLENGER}; choose a version with --version{hint}")
    plan = plan_promotion(name, current, version)
    with ExitStack() as downloads:  # removed at the end
        challenger = downloads.enter_context(_open_candidate(client, uri, name, version))
        champion = _open_champion(downloads, client, uri, plan, options.is_forced, log)
        return _promote_candidate(client, config, plan, challenger, champion, request, show)


def _promote_candidate(
    client: MlflowClient,
    config: Config,
    plan: AliasChange,
    challenger: Candidate,
    champion: Candidate | None,
    request: PromotionRequest,
    show: ShowDecision,
) -> PromotionResult:
    """Measures the candidates, evaluates the gates, records the decision and moves the aliases."""
    uri, options = paths.tracking_uri(config), request.options
    measurements = measure_candidates(challenger, champion, request.evaluation, config.serve)
    decision = evaluate_gates(options.gates, measurements.challenger, measurements.champion, measurements.comparison)
    is_accepted = decision.is_passed or options.is_forced
    show(measurements, decision)
    if request.dry_run:
        return PromotionResult(plan if is_accepted else None, decision, measurements)
    with _registry_errors(uri), aliases.promotion_lock(client, plan):
        end_interrupted_audits(client, plan.model)
        audit = record_decision(client, plan.model, challenger, measurements, decision, options)
        if not is_accepted:
            return PromotionResult(None, decision, measurements, audit)
        aliases.apply_change(client, replace(plan, audit=audit))
    return PromotionResult(plan, decision, measurements, audit, is_moved=True)


def rollback(
    config: Config,
    log: Log,
    reason: str | None = None,
    dry_run: bool = False,
    timeout_s: float = aliases.LOCK_TIMEOUT_S,
) -> PromotionResult:
    """Makes the previous version the champion again.

    Args:
        config: settings with the store and the model.
        log: callable that receives messages for the user.
        reason: reason for the record.
        dry_run: True to return the plan without any change to the store.
        timeout_s: seconds to wait for a promotion by another process.

    Raises:
        RegistryError: the model does not exist, it has no previous version or that version has no files, or the store
            does not respond.
        PromotionError: another process moved the aliases meanwhile.
    """
    name, uri = config.tracking.model, paths.tracking_uri(config)
    client, recovered, current = _open_model(name, uri, dry_run, log, timeout_s)
    if recovered is not None and recovered.kind == "rollback":
        return PromotionResult(recovered, is_moved=True, was_recovered=True)
    plan = plan_rollback(name, current)
    with _open_candidate(client, uri, name, str(plan.after[CHAMPION])) as target:
        if dry_run:
            return PromotionResult(plan)
        with _registry_errors(uri), aliases.promotion_lock(client, plan):
            end_interrupted_audits(client, name)
            audit = record_rollback(client, name, target, current[CHAMPION], reason)
            aliases.apply_change(client, replace(plan, audit=audit))
    return PromotionResult(plan, audit=audit, is_moved=True)


def _open_model(
    name: str, uri: str, dry_run: bool, log: Log, timeout_s: float
) -> tuple[MlflowClient, AliasChange | None, Aliases]:
    """Returns a client, the interrupted plan that was carried out (or `None`), and the current aliases."""
    client = connect_mlflow(uri, f"model {name}")
    with _registry_errors(uri):
        recovered = _recover(client, name, dry_run, log, timeout_s)
        try:
            return client, recovered, aliases.get_aliases(client, name)
        except MlflowException as error:
            if error.error_code != NOT_FOUND:
                raise
            hint = available_hint(client, f"models:/{name}")
            raise RegistryError(f"model {name} does not exist{hint}") from error


def _recover(client: MlflowClient, name: str, dry_run: bool, log: Log, timeout_s: float) -> AliasChange | None:
    plan = aliases.pending_change(client, name)
    if plan is None:
        return None
    if dry_run:
        log(f"a {plan.kind} of {name} is in progress or was interrupted; a command without --dry-run completes it.")
        return None
    log(f"a {plan.kind} of {name} is in progress or was interrupted; waiting up to {timeout_s:g} s for it.")
    recovered = aliases.recover(client, name, timeout_s)
    if recovered is not None:
        versions = f"{CHAMPION} is {recovered.after[CHAMPION]}, {PREVIOUS} is {recovered.after[PREVIOUS] or 'none'}"
        log(f"completed the interrupted {recovered.kind}: {versions}.")
    return recovered


@contextmanager
def _open_candidate(client: MlflowClient, uri: str, name: str, version: str) -> Iterator[Candidate]:
    """Context manager that downloads and verifies a version, and removes the download at the end."""
    reference = f"models:/{name}/{version}"
    with open_checkpoint(reference, uri) as folder:
        with _registry_errors(uri):
            model_version = resolve_version(client, reference)
        yield Candidate(version, folder, model_version.tags.get(DIGEST_TAG), model_version.run_id or None)


def _open_champion(
    downloads: ExitStack, client: MlflowClient, uri: str, plan: AliasChange, is_forced: bool, log: Log
) -> Candidate | None:
    """Returns the champion to compare with, or `None` if there is none.

    A forced promotion skips a champion whose files are missing or are not those that were registered.
    """
    version = plan.before[CHAMPION]
    if version is None:
        return None
    try:
        return downloads.enter_context(_open_candidate(client, uri, plan.model, version))
    except RegistryError as error:
        if not is_forced:
            raise RegistryError(f"the {CHAMPION} cannot be loaded: {error} --force promotes without it.") from error
        log(f"the {CHAMPION} cannot be loaded; promoting without a comparison: {error}")
        return None


@contextmanager
def _registry_errors(uri: str) -> Iterator[None]:
    """Converts errors of an unavailable store into a RegistryError that names the store."""
    try:
        yield
    except UNAVAILABLE as error:
        raise RegistryError(
            f"MLflow at {paths.redact(uri)} failed: {error_summary(error)}; repeat the command to complete an "
            "interrupted update."
        ) from error
