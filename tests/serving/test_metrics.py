"""Counters: their sums, read by the parser of Prometheus."""

from prometheus_client.parser import text_string_to_metric_families

from segray.serving.metrics import Counters, render_prometheus, sum_counters


def samples(text):
    families = text_string_to_metric_families(text.decode())
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value for family in families for sample in family.samples
    }


def test_counters_of_several_processes_are_summed():
    first, second = Counters(), Counters()
    for counters, status in ((first, "200"), (first, "200"), (second, "200"), (second, "422")):
        counters.inc("segray_requests", "/v1/segment", status)
    first.inc("segray_class_pixels", "3", 'a "road"', by=7)
    values = samples(render_prometheus(sum_counters([first.counts, second.counts]), {}))
    path = ("path", "/v1/segment")
    assert values["segray_requests_total", path, ("status", "200")] == 3
    assert values["segray_requests_total", path, ("status", "422")] == 1
    assert values["segray_class_pixels_total", ("class", 'a "road"'), ("version", "3")] == 7


def test_buckets_include_their_upper_bound():
    counters = Counters()
    for batch in (1, 2, 2, 3, 100):
        counters.observe("segray_batch_images", batch, "1")
    values = samples(render_prometheus(counters.counts, {}))
    buckets = {bound: values["segray_batch_images_bucket", ("le", bound), ("version", "1")] for bound in ("1.0", "2.0")}
    assert buckets == {"1.0": 1, "2.0": 3}
    assert values["segray_batch_images_bucket", ("le", "4.0"), ("version", "1")] == 4
    assert values["segray_batch_images_bucket", ("le", "64.0"), ("version", "1")] == 4
    assert values["segray_batch_images_bucket", ("le", "+Inf"), ("version", "1")] == 5
    assert values["segray_batch_images_count", ("version", "1")] == 5
    assert values["segray_batch_images_sum", ("version", "1")] == 108


def test_gauges_are_rendered():
    values = samples(
        render_prometheus({}, {"segray_replicas": ("R.", {"3": 2.0}), "segray_problems": ("P.", {"": 0.0})})
    )
    assert values["segray_replicas", ("version", "3")] == 2
    assert values["segray_problems",] == 0
