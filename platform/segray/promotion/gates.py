"""Promotion gates: checks of the measurements that a challenger must pass before it is served.

The functions are pure. They access neither a store nor a cluster.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf, isfinite

from segray.config import PromoteConfig
from segray.evaluation.compare import MIN_SAMPLES, Comparison

MAX_NAMED = 10
"""Maximum number of classes that a reason names. The reason also gives the number of classes left out."""


@dataclass(frozen=True)
class ModelMeasurements:
    """Measurements of a model version.

    Attributes:
        version: version in the registry.
        classes: names of the model's classes.
        miou: mean IoU on the rows, 0 to 1; `None` if the version was not evaluated because its classes differ.
        iou: IoU of each class; `None` for a class that occurs in neither labels nor predictions.
        latency_ms: median time for an image, in milliseconds.
        size_mib: size of the weights, in MiB.
        mismatch: problem with the stored files, such as a difference from the registered ones; empty if there is none.
    """

    version: str
    classes: tuple[str, ...]
    miou: float | None
    iou: Mapping[str, float | None]
    latency_ms: float
    size_mib: float
    mismatch: str = ""


@dataclass(frozen=True)
class GateResult:
    """Result of one gate.

    Attributes:
        gate: name of the gate.
        is_passed: True if the challenger passed the gate.
        observed: measured values, as text.
        expected: required values, as text.
    """

    gate: str
    is_passed: bool
    observed: str
    expected: str

    def as_json(self) -> dict[str, str | bool]:
        """Returns a JSON-compatible dict."""
        return {
            "gate": self.gate,
            "is_passed": self.is_passed,
            "found": self.observed,
            "expected": self.expected,
        }


@dataclass(frozen=True)
class Decision:
    """Decision on a challenger.

    Attributes:
        challenger: version of the challenger.
        champion: version of the champion; `None` if there is none.
        checks: results of all gates, in order.
    """

    challenger: str
    champion: str | None
    checks: tuple[GateResult, ...]

    @property
    def is_passed(self) -> bool:
        """True if the challenger passed every gate."""
        return all(check.is_passed for check in self.checks)

    @property
    def reasons(self) -> list[str]:
        """Reasons for a refusal, one line per failed gate."""
        failed = [check for check in self.checks if not check.is_passed]
        return [f"{check.gate}: {check.observed}; expected {check.expected}" for check in failed]


def evaluate_gates(
    gates: PromoteConfig,
    challenger: ModelMeasurements,
    champion: ModelMeasurements | None = None,
    comparison: Comparison | None = None,
) -> Decision:
    """Evaluates all gates for a challenger.

    Args:
        gates: settings of the gates.
        challenger: measurements of the challenger.
        champion: measurements of the champion; `None` if there is none.
        comparison: metric differences between challenger and champion on the same rows; `None` if their classes differ.

    Returns:
        Decision with the result of each gate.
    """
    checks = [_package_gate(challenger), *_class_iou_gate(gates, challenger), *_budget_gates(gates, challenger)]
    if champion is not None:
        checks += [_classes_gate(gates, challenger, champion), *_relative_latency_gate(gates, challenger, champion)]
    if comparison is not None:
        checks += [_mean_iou_gate(gates, comparison), _class_iou_drop_gate(gates, comparison)]
    return Decision(challenger.version, champion.version if champion else None, tuple(checks))


def _package_gate(challenger: ModelMeasurements) -> GateResult:
    observed = challenger.mismatch or "files are identical"
    return GateResult("package integrity", not challenger.mismatch, observed, "files of the registered checkpoint")


def _class_iou_gate(gates: PromoteConfig, challenger: ModelMeasurements) -> Iterator[GateResult]:
    minima = gates.min_class_iou
    if not minima:
        return
    if not isinstance(minima, Mapping):
        expected, minima = f"at least {minima:g} for every class", dict.fromkeys(challenger.classes, minima)
    else:
        expected = "at least " + _format_names([f"{minimum:g} for {name}" for name, minimum in minima.items()])
    margins = {name: _margin(challenger.iou.get(name), minimum) for name, minimum in minima.items()}
    ascending = sorted(margins, key=lambda name: margins[name])
    failed = [name for name in ascending if margins[name] < 0]
    observed = _format_names([_format_iou(challenger, name) for name in failed or ascending[:1]])
    yield GateResult("class IoU", not failed, observed, expected)


def _margin(iou: float | None, minimum: float) -> float:
    return -inf if iou is None else iou - minimum


def _format_iou(challenger: ModelMeasurements, name: str) -> str:
    if name not in challenger.classes:
        return f"{name} is not a class of the model"
    iou = challenger.iou.get(name)
    return f"{name} is absent" if iou is None else f"{name} {iou:.4f}"


def _format_names(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more


def _budget_gates(gates: PromoteConfig, challenger: ModelMeasurements) -> Iterator[GateResult]:
    if gates.max_latency_ms is not None:
        is_fast = challenger.latency_ms <= gates.max_latency_ms
        yield GateResult("latency", is_fast, f"{challenger.latency_ms:.1f} ms", f"at most {gates.max_latency_ms:g} ms")
    if gates.max_size_mib is not None:
        is_small = challenger.size_mib <= gates.max_size_mib
        yield GateResult("size", is_small, f"{challenger.size_mib:.1f} MiB", f"at most {gates.max_size_mib:g} MiB")


def _classes_gate(gates: PromoteConfig, challenger: ModelMeasurements, champion: ModelMeasurements) -> GateResult:
    if challenger.classes == champion.classes:
        return GateResult("classes", True, "identical", "the classes of the champion")
    missing = sorted(set(champion.classes) - set(challenger.classes))
    additional = sorted(set(challenger.classes) - set(champion.classes))
    changes = [*missing, *additional]
    if not changes:
        return GateResult("classes", False, "different order", "the classes of the champion in the same order")
    labelled = (("missing", missing), ("additional", additional))
    observed = "; ".join(f"{label}: {_format_names(names)}" for label, names in labelled if names)
    is_passed = set(changes) <= set(gates.allowed_class_changes)
    hint = "" if is_passed else f", or promote.allowed_class_changes '[{', '.join(changes)}]'"
    return GateResult("classes", is_passed, observed, f"the classes of the champion{hint}")


def _relative_latency_gate(
    gates: PromoteConfig, challenger: ModelMeasurements, champion: ModelMeasurements
) -> Iterator[GateResult]:
    limit = gates.max_latency_ratio
    if limit is not None:
        ratio = challenger.latency_ms / champion.latency_ms
        observed = f"{ratio:.2f} ({challenger.latency_ms:.1f} ms, champion {champion.latency_ms:.1f} ms)"
        yield GateResult("relative latency", ratio <= limit, observed, f"at most {limit:g}")


def _mean_iou_gate(gates: PromoteConfig, comparison: Comparison) -> GateResult:
    miou = comparison.miou
    low, high = miou.interval
    observed = f"{miou.candidate:.4f} (champion {miou.baseline:.4f}), difference {miou.delta:+.4f} "
    observed += f"[{low:+.4f}, {high:+.4f}]"
    expected = f"95% interval of the difference above {-gates.max_miou_drop:+g}"
    has_enough_images = miou.num_samples >= MIN_SAMPLES
    if not has_enough_images:
        observed, expected = f"{observed}, {miou.num_samples} images", f"{expected}, at least {MIN_SAMPLES} images"
    return GateResult("mean IoU", has_enough_images and low > -gates.max_miou_drop, observed, expected)


def _class_iou_drop_gate(gates: PromoteConfig, comparison: Comparison) -> GateResult:
    deltas = {name: metric.delta for name, metric in comparison.iou.items() if isfinite(metric.delta)}
    failed = {name: delta for name, delta in deltas.items() if delta < -gates.max_class_iou_drop}
    lowest = sorted(failed or deltas, key=lambda name: deltas[name])[: max(1, len(failed))]
    observed = _format_names([f"{name} {deltas[name]:+.4f}" for name in lowest]) or "no class can be compared"
    expected = f"a drop of at most {gates.max_class_iou_drop:g} in every class"
    return GateResult("class IoU drop", bool(deltas) and not failed, observed, expected)
