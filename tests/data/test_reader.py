"""Reading row groups: what was written, numbered through the shards; what was exchanged since is refused and named."""

import os
import shutil
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from benchmarks.datasets import write_resized_dataset
from segray.core.errors import DataError
from segray.data.manifest import read_manifest
from segray.data.reader import SplitReader
from segray.data.storage import display_path


@pytest.fixture
def copy(streets, tmp_path):
    return shutil.copytree(streets, tmp_path / "copy")


def train(root):
    return SplitReader(str(root), read_manifest(str(root)).split("train"))


def test_row_groups_are_numbered_consecutively_over_the_shards(streets):
    source, groups = train(streets), [9, 0, 3]
    table = source.read(groups)
    rows = [row for row in range(41) if source.groups_of_rows([row])[0] in groups]
    assert table["row"].to_pylist() == rows
    assert table["id"].to_pylist() == [f"train/street_{row:05d}" for row in rows]


def test_a_row_is_described_by_its_shard_and_number(streets):
    source = train(streets)
    for row in range(41):
        path, _, number = source.describe_row(row).partition(", row ")
        assert pq.read_table(path)["id"][int(number)].as_py() == f"train/street_{row:05d}"


def test_min_sizes_reads_no_images(streets):
    assert train(streets).min_sizes() == [(144, 192), (144, 192)]


def test_messages_contain_no_credentials():
    assert display_path("s3://KEY:SECRET@bucket/data?region=x", "a/b") == "s3://bucket/data/a/b"
    assert display_path("/data/what?", "a") == "/data/what?/a"


def test_a_missing_shard_is_an_error_at_the_start_and_later(copy):
    source = train(copy)
    (copy / "train/part-00000.parquet").unlink()
    with pytest.raises(DataError, match=r"shard .*copy/train/part-00000.parquet is missing"):
        read_manifest(str(copy))
    with pytest.raises(DataError, match=r"shard .*copy/train/part-00000.parquet was deleted after the run started"):
        source.read([0])


def test_a_dataset_that_is_not_mounted_is_not_called_deleted(copy):
    source = train(copy)
    copy.rename(copy.with_name("elsewhere"))
    with pytest.raises(DataError, match=r"part-00000.parquet does not exist on .*; expected a dataset that all nodes"):
        source.read([0])


def test_a_shard_of_the_wrong_size_is_an_error_at_the_start(copy):
    with (copy / "train/part-00000.parquet").open("ab") as file:
        file.write(b"more")
    with pytest.raises(DataError, match=r"part-00000.parquet is damaged: \d+ bytes; expected \d+"):
        read_manifest(str(copy))


def test_a_shard_replaced_during_a_run_is_an_error(copy):
    source = train(copy)
    path = copy / "train/part-00000.parquet"
    pq.write_table(pq.read_table(path), path, row_group_size=3)
    with pytest.raises(DataError, match=r"part-00000.parquet has changed: its row groups have 3, .* expected 4"):
        source.read([0])


def rewrite_shard(copy, change):
    """The source of a data set in whose first shard the columns were changed, row groups and size staying."""
    source, path = train(copy), copy / "train/part-00000.parquet"
    table = pq.read_table(path)
    for name, values in change(table).items():
        index = table.schema.get_field_index(name)
        table = table.set_column(index, table.schema.field(name), pa.array(values, table.schema.field(name).type))
    pq.write_table(table, path, row_group_size=4, compression="none", use_dictionary=False)
    return source


def test_swapped_masks_are_errors_that_name_the_row(copy):
    source = rewrite_shard(copy, lambda table: {"mask": table["mask"].to_pylist()[::-1]})
    with pytest.raises(DataError, match=r"copy/train/part-00000.parquet, row 0 has changed since the conversion"):
        source.read([0])


def test_rows_of_another_conversion_are_errors(copy):
    source = rewrite_shard(copy, lambda table: {name: table[name].to_pylist()[::-1] for name in table.column_names})
    with pytest.raises(DataError, match=r"shard .*part-00000.parquet has changed: its rows differ from the man"):
        source.read([0])


def test_a_shard_that_is_not_parquet_is_an_error(copy):
    source = train(copy)
    (copy / "train/part-00000.parquet").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"shard .*part-00000.parquet cannot be read"):
        source.read([0])


@pytest.fixture(scope="module")
def bucket(streets, s3_server):
    """The URI of the streets in a bucket."""
    url = s3_server()
    uri = f"s3://segray-test/streets?endpoint_override={url}&allow_bucket_creation=true"
    remote, path = pyarrow.fs.FileSystem.from_uri(uri)
    remote.create_dir("segray-test")
    pyarrow.fs.copy_files(str(streets), path, destination_filesystem=remote)
    return uri


def test_a_bucket_holds_the_same_rows_as_the_disk(bucket, streets, ray_cluster):
    local, remote = train(streets), train(bucket)
    assert remote.read([9, 0, 3]).equals(local.read([9, 0, 3]))
    assert remote.describe_row(0) == "s3://segray-test/streets/train/part-00000.parquet, row 0"


@pytest.mark.slow
def test_the_throughput_of_a_bucket_and_of_a_disk(ray_cluster, streets, tmp_path, s3_server):
    """Prints it: a bucket of one Python process on this machine says little about a real one."""
    local = write_resized_dataset(str(streets), "train", 512, 800, tmp_path / "large")
    url = s3_server()
    uri = f"s3://segray-speed/large?endpoint_override={url}&allow_bucket_creation=true"
    remote, path = pyarrow.fs.FileSystem.from_uri(uri)
    remote.create_dir("segray-speed")
    pyarrow.fs.copy_files(str(tmp_path / "large"), path, destination_filesystem=remote)
    groups = list(range(len(local.rows_per_group())))
    rates = {}
    for name, source in (("local disk", local), ("S3-compatible server", train(uri))):
        source.read(groups[:1])
        start = time.perf_counter()
        rates[name] = source.read(groups).nbytes / (time.perf_counter() - start) / 1e6
    print("".join(f"\n{name}: {rate:.0f} MB/s" for name, rate in rates.items()))
    assert rates["S3-compatible server"] > 5


def test_the_loader_reads_from_a_bucket(bucket, streets, ray_cluster):
    from segray import config
    from segray.data.augment.augmenter import Augmenter
    from segray.data.loader import LoaderResources, training_batches
    from segray.data.sampler import EpochPlan

    result = []
    for root in (bucket, streets):
        source, augment = train(root), Augmenter(config.build({"data.crop": 32}).data, 255)
        plan = EpochPlan(source.rows_per_group(), 4, 0)
        result.append(list(training_batches(source, plan, range(4), 0, 12, augment, LoaderResources(0.5, 2))))
    for remote, local in zip(*result, strict=True):
        assert all(remote[name].equal(local[name]) for name in ("image", "mask", "row"))


def test_a_missing_dataset_in_a_bucket_is_an_error(bucket):
    with pytest.raises(
        DataError, match=r"s3://segray-test/nothing contains no dataset .*--out s3://segray-test/nothing`"
    ):
        read_manifest(bucket.replace("/streets", "/nothing"))


def test_missing_credentials_are_errors_with_a_hint(s3_server):
    url = s3_server(INITIAL_NO_AUTH_ACTION_COUNT="0")
    code = f"from segray.data.storage import display_path; from segray.data.manifest import read_manifest; read_manifest('s3://closed/data?endpoint_override={url}')"
    without = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment = without | {"AWS_EC2_METADATA_DISABLED": "true", "HOME": "/nonexistent"}
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    last = ended.stderr.strip().splitlines()[-1]
    assert "data.root s3://closed/data" in last
    assert "cannot be read" in last
    assert "credentials come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE" in last


@pytest.mark.skipif("SEGRAY_GCS" not in os.environ, reason="SEGRAY_GCS does not name HOST:PORT/BUCKET of an emulator")
def test_a_google_bucket_holds_the_same_rows_as_the_disk(streets):
    endpoint, _, name = os.environ["SEGRAY_GCS"].partition("/")
    uri = f"gs://anonymous@{name}/streets?endpoint_override={endpoint}&scheme=http&retry_limit_seconds=5"
    remote, path = pyarrow.fs.FileSystem.from_uri(uri)
    pyarrow.fs.copy_files(str(streets), path, destination_filesystem=remote)
    assert train(uri).read([9, 0, 3]).equals(train(streets).read([9, 0, 3]))


def test_shards_with_different_columns_are_an_error_that_names_the_dataset(copy):
    source, path = train(copy), copy / "train/part-00000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.append_column("city", pa.array(["a"] * len(table))), path, row_group_size=4)
    with pytest.raises(DataError, match="copy have different columns"):
        source.read_columns(["id", "city"])


def test_shards_may_differ_in_what_is_nullable(copy, streets):
    source, path = train(copy), copy / "train/part-00000.parquet"
    table = pq.read_table(path)
    fields = [field.with_nullable(not field.nullable) for field in table.schema]
    pq.write_table(table.cast(pa.schema(fields)), path, row_group_size=4, compression="none", use_dictionary=False)
    groups = [0, 9]
    assert source.read(groups).to_pylist() == train(streets).read(groups).to_pylist()
