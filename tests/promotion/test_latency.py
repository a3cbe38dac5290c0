"""Latencies are measured where and as a replica of the server would run."""

import json
import os

import cv2
import numpy as np
import pytest
import torch

from segray.config import ServeConfig, build
from segray.core.classes import Classes
from segray.core.errors import CapacityError, DataError
from segray.models import checkpoint
from segray.models.build import build_model
from segray.promotion.latency import measure_latencies

PROBE = """
import json, os
from pathlib import Path
import ray, torch
from segray.models.segformer.heads import SegFormerHead

class Head(SegFormerHead):
    def forward(self, maps):
        if os.getpid() != {driver}:
            resources = ray.get_runtime_context().get_assigned_resources()
            with Path({path!r}).open("a") as file:
                row = {{"pid": os.getpid(), "threads": torch.get_num_threads(), "resources": resources}}
                row |= {{"dtype": str(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else "fp32"}}
                file.write(json.dumps(row | {{"batch": list(maps[0].shape)}}) + chr(10))
        return super().forward(maps)

def head(dims, strides, num_classes, dropout):
    return Head(dims, width=8, num_classes=num_classes, dropout=dropout)
"""


@pytest.fixture(scope="module")
def probe(plugins, tmp_path_factory):
    """A version whose head writes down where it runs, and the file that it writes to."""
    file = tmp_path_factory.mktemp("probe") / "lines"
    (plugins / "latency_probe.py").write_text(PROBE.format(path=str(file), driver=os.getpid()))
    run = tmp_path_factory.mktemp("run") / "step-000001"
    run.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(plugins)
        config = build({"model.head": "latency_probe:head", "data.crop": 64, "eval.crop": 64, "eval.stride": 48})
        classes = Classes.from_names(["road", "sky"])
        model = build_model(config, classes)
        meta = checkpoint.Meta(step=1, dataset_digest="", versions={})
        checkpoint.snapshot(model, {}, config, classes, meta).write(run)
    file.unlink(missing_ok=True)
    return run, file


def image(height, width):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return cv2.imencode(".png", pixels)[1].tobytes()


def test_both_versions_are_timed_in_one_task_with_the_resources_of_a_replica(ray_cluster, probe):
    folder, file = probe
    settings = ServeConfig(device="cpu", cpus_per_replica=2, precision="bf16", slide_above_pixels=64 * 64)
    found = measure_latencies([folder, folder], [image(64, 64), image(64, 128)], settings)
    assert len(found) == 2
    assert min(found) > 0
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len({row["pid"] for row in rows}) == 1
    assert rows[0]["pid"] != os.getpid()
    for row in rows[2:]:  # behind the probes of the loading
        assert row["threads"] == 2
        assert row["resources"]["CPU"] == 2
    timed = [row for row in rows if row["batch"][2:] == [16, 16]]
    assert {row["dtype"] for row in timed} == {str(torch.bfloat16)}
    # The small image in one piece, the large one in three windows of the size of the crop, 48 apart.
    assert {row["batch"][0] for row in timed} == {1, 3}


def test_a_cluster_that_could_not_serve_is_named(ray_cluster, probe):
    folder, _ = probe
    with pytest.raises(CapacityError, match="serve.device is cuda, and no node of the cluster has a GPU"):
        measure_latencies([folder], [image(64, 64)], ServeConfig(device="cuda"))
    with pytest.raises(CapacityError, match="serve.cpus_per_replica is 64, and no node of the cluster has 64 CPUs"):
        measure_latencies([folder], [image(64, 64)], ServeConfig(device="cpu", cpus_per_replica=64))


def test_no_image_is_nothing_to_be_timed_with(probe):
    with pytest.raises(DataError, match="no image of the split can be decoded"):
        measure_latencies([probe[0]], [], ServeConfig())
