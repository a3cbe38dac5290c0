"""Conversions into a bucket, of an S3-compatible server."""

import pyarrow.fs
import pytest

from segray.core.errors import DataError
from segray.data import locks
from segray.data.convert import resume
from segray.data.convert.convert import convert_dataset
from segray.data.convert.shards import ShardLimits
from segray.data.locks import os
from segray.data.manifest import read_manifest
from segray.data.sources import demo
from segray.data.sources.sample import SourceListing
from segray.data.validate.dataset import validate_dataset

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def server(ray_cluster, s3_server):
    url = s3_server()
    there, _ = pyarrow.fs.FileSystem.from_uri(f"s3://segray-made?endpoint_override={url}&allow_bucket_creation=true")
    there.create_dir("segray-made")
    return there, url


@pytest.fixture
def place(server, request):
    """A folder in a bucket: where it is, and what looks into it."""
    there, url = server
    name = f"segray-made/{request.node.name[:40]}"

    def names():
        found = there.get_file_info(pyarrow.fs.FileSelector(name, recursive=True, allow_not_found=True))
        return sorted(info.path.removeprefix(f"{name}/") for info in found if info.type == pyarrow.fs.FileType.File)

    return f"s3://{name}?endpoint_override={url}", names


FOUND = SourceListing(demo.demo_samples(splits={"train": 20, "val": 4}), demo.demo_classes(), absent_ok=True)
BOUNDS = ShardLimits(group_rows=2)


def test_a_bucket_gets_the_same_dataset_as_a_folder(place, tmp_path):
    uri, names = place
    here, there = (convert_dataset(FOUND, out, bounds=BOUNDS) for out in (str(tmp_path / "out"), uri))
    assert there == here == read_manifest(uri)
    assert names() == ["dataset.json", *(shard.path for split in here.splits.values() for shard in split.shards)]
    found = validate_dataset(uri)
    assert (found.errors, found.warnings, found.splits["train"].rows) == ([], [], 20)
    with pytest.raises(DataError, match=r"output s3://segray-made/\S+ contains a dataset"):
        convert_dataset(FOUND, uri)


def interrupt(_what, done, _total):
    if done > 10:
        raise KeyboardInterrupt


def test_a_conversion_into_a_bucket_goes_on(place, tmp_path):
    uri, names = place
    with pytest.raises(KeyboardInterrupt):
        convert_dataset(FOUND, uri, bounds=BOUNDS, on_progress=interrupt)
    with pytest.raises(DataError, match="unfinished conversion"):
        read_manifest(uri)
    steps = []
    made = convert_dataset(FOUND, uri, bounds=BOUNDS, on_progress=lambda *step: steps.append(step))
    assert steps[0][0] == "resuming"
    assert steps[0][1] > 10
    assert made == convert_dataset(FOUND, str(tmp_path / "out"), bounds=BOUNDS)
    assert not [name for name in names() if "unfinished" in name]


def test_two_conversions_are_not_let_into_one_bucket_and_a_dead_one_is_forgotten(place, monkeypatch):
    uri, names = place
    with resume.conversion_lock(uri, ["train", "val"]):
        monkeypatch.setattr(os, "getpid", lambda: 1)
        with pytest.raises(DataError, match=r"wrote to s3://segray-made/\S+ less than 60 s ago; wait until it ends"):
            convert_dataset(FOUND, uri)
        assert len(names()) == 1
        monkeypatch.setattr(locks, "LEASE_TIMEOUT_S", 0.0)
        assert convert_dataset(FOUND, uri).splits["train"].rows == 20


def test_a_server_that_is_gone_is_told(monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(DataError, match=r"output s3://nowhere/made cannot be listed .*credentials come from"):
        convert_dataset(FOUND, "s3://nowhere/made?endpoint_override=http://127.0.0.1:9")
