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
        differs: difference between the stored files and the registered checkpoint; empty if there is none.
    """

    version: str
    classes: tuple[str, ...]
    miou: float | None
    iou: Mapping[str, float | None]
    latency_ms: float
    size_mib: float
    differs: str = ""


@dataclass(frozen=True)
class GateResult:
    """Result of one gate.

    Attributes:
        gate: name of the gate.
        is_passed: True if the challenger passed the gate.
        found: measured values, as text.
        expected: required values, as text.
    """

    gate: str
    is_passed: bool
    found: str
    expected: str


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
        return [
            f"{check.gate}: {check.found}; expected {check.expected}" for check in self.checks if not check.is_passed
        ]


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
    checks = [_parity(challenger), *_floors(gates, challenger), *_budgets(gates, challenger)]
    if champion is not None:
        checks += [_classes(gates, challenger, champion), *_latency(gates, challenger, champion)]
    if comparison is not None:
        checks += [_miou(gates, comparison), _no_class(gates, comparison)]
    return Decision(challenger.version, champion.version if champion else None, tuple(checks))


def _parity(challenger: ModelMeasurements) -> GateResult:
    found = challenger.differs or "the same files, and the same masks"
    return GateResult("stored as trained", not challenger.differs, found, "what was registered")


def _floors(gates: PromoteConfig, challenger: ModelMeasurements) -> Iterator[GateResult]:
    floors = gates.class_floor
    if not floors:
        return
    if not isinstance(floors, Mapping):
        expected, floors = f"at least {floors:g} of every class", dict.fromkeys(challenger.classes, floors)
    else:
        expected = "at least " + _listed([f"{floor:g} of {name}" for name, floor in floors.items()])
    above = {name: _above(challenger.iou.get(name), floor) for name, floor in floors.items()}
    closest = sorted(above, key=lambda name: above[name])
    below = [name for name in closest if above[name] < 0]
    found = _listed([f"{name} {_iou(challenger, name)}" for name in below or closest[:1]])
    yield GateResult("IoU of each class", not below, found, expected)


def _above(iou: float | None, floor: float) -> float:
    return -inf if iou is None else iou - floor


def _iou(challenger: ModelMeasurements, name: str) -> str:
    if name not in challenger.classes:
        return "is no class of the model"
    iou = challenger.iou.get(name)
    return "was not seen" if iou is None else f"{iou:.4f}"


def _listed(found: list[str]) -> str:
    more = f" and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
    return ", ".join(found[:MAX_NAMED]) + more


def _budgets(gates: PromoteConfig, challenger: ModelMeasurements) -> Iterator[GateResult]:
    if gates.latency_ms is not None:
        is_fast = challenger.latency_ms <= gates.latency_ms
        yield GateResult("latency", is_fast, f"{challenger.latency_ms:.1f} ms", f"at most {gates.latency_ms:g} ms")
    if gates.size_mib is not None:
        is_small = challenger.size_mib <= gates.size_mib
        yield GateResult("size", is_small, f"{challenger.size_mib:.1f} MiB", f"at most {gates.size_mib:g} MiB")


def _classes(gates: PromoteConfig, challenger: ModelMeasurements, champion: ModelMeasurements) -> GateResult:
    gone = sorted(set(champion.classes) - set(challenger.classes))
    new = sorted(set(challenger.classes) - set(champion.classes))
    is_moved = not gone and not new and challenger.classes != champion.classes
    told = [f"{word} {_listed(names)}" for word, names in (("without", gone), ("with", new)) if names]
    found = "in another order" if is_moved else ", ".join(told) or "the same"
    named = set(gates.changed_classes)
    is_passed = not is_moved and {*gone, *new} <= named
    expected = "the champion's" + (", in its order" if is_moved else "")
    if not is_passed and not is_moved:
        expected += f", or promote.changed_classes '[{', '.join([*gone, *new])}]'"
    return GateResult("classes", is_passed, found, expected)


def _latency(gates: PromoteConfig, challenger: ModelMeasurements, champion: ModelMeasurements) -> Iterator[GateResult]:
    if gates.slower is not None:
        ratio = challenger.latency_ms / champion.latency_ms
        found = (
            f"{ratio:.2f} times the champion's ({challenger.latency_ms:.1f} ms against {champion.latency_ms:.1f} ms)"
        )
        yield GateResult("time for an image", ratio <= gates.slower, found, f"at most {gates.slower:g} times")


def _miou(gates: PromoteConfig, comparison: Comparison) -> GateResult:
    gained = comparison.miou
    low, high = gained.interval
    found = f"{gained.candidate:.4f} against {gained.baseline:.4f}, gain {gained.delta:+.4f} [{low:+.4f}, {high:+.4f}]"
    is_told = gained.num_samples >= MIN_SAMPLES
    expected = f"a gain above {-gates.miou_drop:+g} with 95% confidence"
    if not is_told:
        found, expected = f"{found} of {gained.num_samples} images", f"{expected}, and {MIN_SAMPLES} images or more"
    return GateResult("mean IoU", is_told and low > -gates.miou_drop, found, expected)


def _no_class(gates: PromoteConfig, comparison: Comparison) -> GateResult:
    gains = {name: one.delta for name, one in comparison.iou.items() if isfinite(one.delta)}
    worse = {name: gain for name, gain in gains.items() if gain < -gates.class_drop}
    lost = sorted(worse or gains, key=lambda name: gains[name])[: max(1, len(worse))]
    found = _listed([f"{name} {gains[name]:+.4f}" for name in lost]) or "no class can be compared"
    expected = f"no class to lose more than {gates.class_drop:g}"
    return GateResult("every class", bool(gains) and not worse, found, expected)
