"""Counters of several processes and their sum in the Prometheus text format."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

SUM = "sum"
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)


class MetricSpec(NamedTuple):
    """Definition of a metric.

    Attributes:
        help: help text of the metric.
        labels: label names of the metric.
        bounds: upper bounds of the buckets of a histogram. `None` defines a counter.
    """

    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] | None = None


METRICS = {
    "segray_requests": MetricSpec("Number of requests by path and status.", ("path", "status")),
    "segray_request_seconds": MetricSpec("Duration of a request in seconds.", ("path",), SECONDS),
    "segray_batch_seconds": MetricSpec(
        "Duration of the forward pass in seconds, observed once per image.", ("version",), SECONDS
    ),
    "segray_batch_images": MetricSpec(
        "Number of images in the forward pass, observed once per image.", ("version",), SIZES
    ),
    "segray_class_pixels": MetricSpec(
        "Predicted pixels by class. A change of the fractions indicates a change of the images.",
        ("version", "class"),
    ),
    "segray_retries": MetricSpec("Number of retries after the failure of a replica."),
    "segray_compared_images": MetricSpec("Number of images that both versions segmented.", ("champion", "challenger")),
    "segray_compared_pixels": MetricSpec("Number of pixels that both versions segmented.", ("champion", "challenger")),
    "segray_agreed_pixels": MetricSpec(
        "Number of compared pixels with the same class in both versions.", ("champion", "challenger")
    ),
    "segray_uncompared_images": MetricSpec("Number of images that were selected for comparison but dropped."),
    "segray_failed_images": MetricSpec("Number of images that a version failed to segment.", ("version",)),
}

Key = tuple[str, tuple[str, ...], str]
"""Metric name, label values, and series.

The series of a histogram is the upper bound of a bucket or `SUM`. The series of a counter is "".
"""


class Counters:
    """Counters and histograms of one process.

    Args:
        counts: initial values.
    """

    def __init__(self, counts: Mapping[Key, float] | None = None) -> None:
        self.counts: defaultdict[Key, float] = defaultdict(float, counts or {})

    def inc(self, name: str, *labels: str, by: float = 1) -> None:
        """Increments a counter."""
        self.counts[name, labels, ""] += by

    def observe(self, name: str, value: float, *labels: str) -> None:
        """Adds a value to a histogram."""
        bounds = METRICS[name].bounds or ()
        bucket = bisect_left(bounds, value)
        self.counts[name, labels, str(bounds[bucket]) if bucket < len(bounds) else "+Inf"] += 1
        self.counts[name, labels, SUM] += value


def sum_counters(processes: Iterable[Mapping[Key, float]]) -> dict[Key, float]:
    """Returns the sum of the counters of several processes."""
    total: defaultdict[Key, float] = defaultdict(float)
    for counts in processes:
        for key, count in counts.items():
            total[key] += count
    return dict(total)


def subtract_counters(total: Mapping[Key, float], counts: Mapping[Key, float]) -> dict[Key, float]:
    """Returns the difference of a sum of counters and the counters of one process."""
    return {key: count for key in total if (count := total[key] - counts.get(key, 0.0))}


Gauges = Mapping[str, tuple[str, Mapping[str, float]]]
"""Help text and values of each gauge, by name. Values are keyed by version, or by "" without a version."""


def render_prometheus(counts: Mapping[Key, float], gauges: Gauges) -> bytes:
    """Renders metrics in the Prometheus text format.

    Args:
        counts: counter values summed over all processes.
        gauges: additional gauges.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(counts, gauges))
    return bytes(generate_latest(registry))


class _Collector(Collector):
    def __init__(self, counts: Mapping[Key, float], gauges: Gauges) -> None:
        self._counts, self._gauges = counts, gauges

    def collect(self) -> Iterator[Metric]:
        """Yields every metric with its values."""
        for name, spec in METRICS.items():
            yield self._histogram(name, spec) if spec.bounds else self._counter(name, spec)
        for name, (help_text, values) in self._gauges.items():
            gauge = GaugeMetricFamily(name, help_text, labels=["version"] if "" not in values else [])
            for version, value in values.items():
                gauge.add_metric([version] if version else [], value)
            yield gauge

    def _counter(self, name: str, spec: MetricSpec) -> Metric:
        family = CounterMetricFamily(name, spec.help, labels=spec.labels)
        for (metric, labels, _), count in sorted(self._counts.items()):
            if metric == name:
                family.add_metric(labels, count)
        return family

    def _histogram(self, name: str, spec: MetricSpec) -> Metric:
        family = HistogramMetricFamily(name, spec.help, labels=spec.labels)
        for labels in sorted({labels for metric, labels, _ in self._counts if metric == name}):
            buckets, cumulative = list[tuple[str, float]](), 0.0
            for bound in (*map(str, spec.bounds or ()), "+Inf"):
                cumulative += self._counts.get((name, labels, bound), 0.0)
                buckets.append((bound, cumulative))
            family.add_metric(labels, buckets, self._counts.get((name, labels, SUM), 0.0))
        return family
