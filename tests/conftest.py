"""What several test modules share: one small Ray cluster, one small dataset."""

import os
import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from hypothesis import settings
from mlflow.tracking import MlflowClient

from segray import config
from segray.config import Config
from segray.core.logging import silence_libraries
from segray.data.convert.convert import convert_dataset
from segray.data.convert.shards import ShardLimits
from segray.data.manifest import MANIFEST, read_manifest
from segray.data.sources import demo
from segray.data.sources.sample import SourceListing
from segray.data.storage import content_hash
from segray.models import checkpoint
from segray.models.build import build_model

# Ray runs its workers at niceness 15. Beside another process on the same cores, they would exceed the time limits.
os.environ.setdefault("RAY_worker_niceness", "0")

settings.register_profile("segray", deadline=None)  # a machine that is busy is no error
settings.load_profile("segray")


@pytest.fixture(scope="session")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder on the Python path of the cluster's workers."""
    return tmp_path_factory.mktemp("plugins")


@pytest.fixture(scope="session")
def ray_cluster(plugins: Path) -> Iterator[str]:
    """The address of a small Ray cluster of this process; nobody else's is touched."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(plugins), os.environ.get("PYTHONPATH")]))
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}
    os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    silence_libraries()
    started = ray.init(address="local", num_cpus=2, log_to_driver=False, configure_logging=False)
    yield started.address_info["gcs_address"]
    ray.shutdown()


@pytest.fixture(scope="session")
def streets(ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted dataset of a few demo streets: 41 rows to train on, in several shards, and 7 to validate on."""
    out = tmp_path_factory.mktemp("data") / "streets"
    samples = demo.demo_samples(splits={"train": 41, "val": 7, "test": 5})
    found = SourceListing(samples, demo.demo_classes(), absent_ok=True)
    convert_dataset(found, str(out), bounds=ShardLimits(shard_bytes=200_000, group_rows=4))
    return out


@pytest.fixture
def spoilt(streets: Path, tmp_path: Path) -> Path:
    """The streets with rows 5 and 30 of the training split undecodable, and a manifest that knows nothing of it."""
    copy = Path(shutil.copytree(streets, tmp_path / "spoilt"))
    manifest = read_manifest(str(copy))
    train, numbers, shards = manifest.split("train"), count(), []
    for shard in train.shards:
        table = pq.read_table(copy / shard.path)
        images = [b"x" * len(one) if next(numbers) in (5, 30) else one for one in table["image"].to_pylist()]
        digests = [content_hash(*pair) for pair in zip(images, table["mask"].to_pylist(), strict=True)]
        table = table.set_column(1, table.schema.field("image"), pa.array(images, pa.binary()))
        table = table.set_column(6, table.schema.field("digest"), pa.array(digests))
        pq.write_table(table, copy / shard.path, row_group_size=4, compression="none", use_dictionary=False)
        known = {"bytes": (copy / shard.path).stat().st_size, "digest": content_hash(*map(str.encode, digests))}
        shards.append(shard.model_copy(update=known))
    splits = manifest.splits | {"train": train.model_copy(update={"shards": tuple(shards)})}
    (copy / MANIFEST).write_text(manifest.model_copy(update={"splits": splits}).with_digest().model_dump_json())
    return copy


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a model of the streets' classes that has learned nothing."""
    torch.manual_seed(0)
    settings, classes = config.build({"eval.size_multiple": 64}), demo.demo_classes()
    model = build_model(settings, classes)
    made = tmp_path_factory.mktemp("run") / "step-000007"
    made.mkdir()
    meta = checkpoint.Meta(step=7, metrics={}, confusion=[], dataset_digest="", versions={})
    checkpoint.snapshot(model, {}, settings, classes, meta).write(made)
    return made


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables: to make them takes seconds, to copy them none."""
    database = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{database}").search_experiments()
    return database


@pytest.fixture
def tiny(streets: Path, tmp_path: Path, empty_store: Path) -> Config:
    """A run of a few steps on the streets, all its traces under the test's own folder."""
    shutil.copy(empty_store, tmp_path)
    return config.build(
        {
            "results": str(tmp_path / "results"),
            "data": {"root": str(streets), "crop": 32},
            "optim": {"lr": 1e-3, "warmup_steps": 1},
            "train": {"steps": 4, "batch": 4, "workers": 1, "log_every": 1, "val_every": 2},
        }
    )
