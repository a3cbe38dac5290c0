"""Counters: added up exactly, and read by Prometheus's own parser."""

from prometheus_client.parser import text_string_to_metric_families

from segray.serving.metrics import Counters, render_prometheus, sum_counters


def samples(text):
    families = text_string_to_metric_families(text.decode())
    return {(one.name, *sorted(one.labels.items())): one.value for family in families for one in family.samples}


def test_counts_of_several_add_up_as_prometheus_reads_them():
    ours, theirs = Counters(), Counters()
    for tally, status in ((ours, "200"), (ours, "200"), (theirs, "200"), (theirs, "422")):
        tally.inc("segray_requests", "/v1/segment", status)
    ours.inc("segray_class_pixels", "3", 'a "road"', by=7)
    found = samples(render_prometheus(sum_counters([ours.counts, theirs.counts]), {}))
    path = ("path", "/v1/segment")
    assert found["segray_requests_total", path, ("status", "200")] == 3
    assert found["segray_requests_total", path, ("status", "422")] == 1
    assert found["segray_class_pixels_total", ("class", 'a "road"'), ("version", "3")] == 7


def test_buckets_hold_what_is_at_most_their_bound():
    tally = Counters()
    for batch in (1, 2, 2, 3, 100):
        tally.observe("segray_batch_images", batch, "1")
    found = samples(render_prometheus(tally.counts, {}))
    buckets = {bound: found["segray_batch_images_bucket", ("le", bound), ("version", "1")] for bound in ("1.0", "2.0")}
    assert buckets == {"1.0": 1, "2.0": 3}
    assert found["segray_batch_images_bucket", ("le", "4.0"), ("version", "1")] == 4
    assert found["segray_batch_images_bucket", ("le", "64.0"), ("version", "1")] == 4
    assert found["segray_batch_images_bucket", ("le", "+Inf"), ("version", "1")] == 5
    assert found["segray_batch_images_count", ("version", "1")] == 5
    assert found["segray_batch_images_sum", ("version", "1")] == 108


def test_gauges_stand_beside_them():
    found = samples(
        render_prometheus({}, {"segray_replicas": ("R.", {"3": 2.0}), "segray_problems": ("P.", {"": 0.0})})
    )
    assert found["segray_replicas", ("version", "3")] == 2
    assert found["segray_problems",] == 0
