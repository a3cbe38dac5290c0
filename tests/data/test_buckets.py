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
    remote, _ = pyarrow.fs.FileSystem.from_uri(f"s3://segray-made?endpoint_override={url}&allow_bucket_creation=true")
    remote.create_dir("segray-made")
    return remote, url


@pytest.fixture
def bucket_folder(server, request):
    """URI of a folder in a bucket, and a function that lists its files."""
    remote, url = server
    name = f"segray-made/{request.node.name[:40]}"

    def list_names():
        result = remote.get_file_info(pyarrow.fs.FileSelector(name, recursive=True, allow_not_found=True))
        return sorted(info.path.removeprefix(f"{name}/") for info in result if info.type == pyarrow.fs.FileType.File)

    return f"s3://{name}?endpoint_override={url}", list_names


LISTING = SourceListing(demo.demo_samples(splits={"train": 20, "val": 4}), demo.demo_classes(), absent_ok=True)
BOUNDS = ShardLimits(group_rows=2)


def test_a_bucket_gets_the_same_dataset_as_a_folder(bucket_folder, tmp_path):
    uri, list_names = bucket_folder
    local, remote = (convert_dataset(LISTING, out, bounds=BOUNDS) for out in (str(tmp_path / "out"), uri))
    assert remote == local == read_manifest(uri)
    assert list_names() == ["dataset.json", *(shard.path for split in local.splits.values() for shard in split.shards)]
    result = validate_dataset(uri)
    assert (result.errors, result.warnings, result.splits["train"].rows) == ([], [], 20)
    with pytest.raises(DataError, match=r"output s3://segray-made/\S+ contains a dataset"):
        convert_dataset(LISTING, uri)


def interrupt(_what, done, _total):
    if done > 10:
        raise KeyboardInterrupt


def test_a_conversion_into_a_bucket_resumes(bucket_folder, tmp_path):
    uri, list_names = bucket_folder
    with pytest.raises(KeyboardInterrupt):
        convert_dataset(LISTING, uri, bounds=BOUNDS, on_progress=interrupt)
    with pytest.raises(DataError, match="unfinished conversion"):
        read_manifest(uri)
    steps = []
    manifest = convert_dataset(LISTING, uri, bounds=BOUNDS, on_progress=lambda *step: steps.append(step))
    assert steps[0][0] == "resuming"
    assert steps[0][1] > 10
    assert manifest == convert_dataset(LISTING, str(tmp_path / "out"), bounds=BOUNDS)
    assert not [name for name in list_names() if "unfinished" in name]


def test_a_lease_excludes_a_second_conversion_and_expires(bucket_folder, monkeypatch):
    uri, list_names = bucket_folder
    with resume.conversion_lock(uri, ["train", "val"]):
        monkeypatch.setattr(os, "getpid", lambda: 1)
        with pytest.raises(DataError, match=r"wrote to s3://segray-made/\S+ less than 60 s ago; wait until it ends"):
            convert_dataset(LISTING, uri)
        assert len(list_names()) == 1
        monkeypatch.setattr(locks, "LEASE_TIMEOUT_S", 0.0)
        assert convert_dataset(LISTING, uri).splits["train"].rows == 20


def test_an_unreachable_server_is_an_error(monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(DataError, match=r"output s3://nowhere/made cannot be listed .*credentials come from"):
        convert_dataset(LISTING, "s3://nowhere/made?endpoint_override=http://127.0.0.1:9")
