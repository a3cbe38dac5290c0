"""Exhausted memory is never reported as damage of the data that was read at that time."""

import json
import zlib
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segray import config
from segray.cli import prepare
from segray.core.errors import OutOfMemoryError
from segray.data import shard_reader
from segray.data.manifest import COLUMNS, Shard
from segray.data.sources import coco
from segray.data.sources.huggingface_tables import _translate_read_errors
from segray.data.validate.shard import ShardTask, inspect_shard
from segray.evaluation import evaluate as evaluate_module
from segray.inference.batch.parquet import _reading

ERROR = pa.ArrowMemoryError("malloc of size 4096 failed")
SHARD = Shard(path="train/part-00000.parquet", rows=1, bytes=1, row_groups=(1,), digest="")


def exhaust(*_, **__):
    raise ERROR


def read_shard(root, monkeypatch):
    monkeypatch.setattr(shard_reader, "open_shard", exhaust)
    shard_reader.read_shard(str(root), SHARD, [0], ["id"])


def validate_shard(root, monkeypatch):
    (root / "train").mkdir()
    (root / SHARD.path).write_bytes(b"x")
    monkeypatch.setattr(pq, "ParquetFile", exhaust)
    inspect_shard(ShardTask(str(root), "train", SHARD, 2, 255))


def validate_row_group(root, monkeypatch):
    (root / "train").mkdir()
    pq.write_table(COLUMNS.empty_table(), root / SHARD.path)
    shard = SHARD.model_copy(update={"row_groups": (0,)})
    for name in ("read_row_groups", "iter_batches"):
        monkeypatch.setattr(pq.ParquetFile, name, exhaust)
    inspect_shard(ShardTask(str(root), "train", shard, 2, 255))


def read_segmentation(_root, monkeypatch):
    monkeypatch.setattr(coco, "_read_run_lengths", exhaust)
    annotations = [{"category_id": 1, "segmentation": []}]
    coco.AnnotationMask(None, "image", (4, 4), zlib.compress(json.dumps(annotations).encode()), False)()


def list_source(_root, monkeypatch):
    monkeypatch.setattr(prepare, "_find_source", lambda _: exhaust)
    prepare._read_source("folder", "x")


def read_predicted_table(_root, _monkeypatch):
    with _reading("x.parquet"):
        exhaust()


def read_hub_table(_root, _monkeypatch):
    with _translate_read_errors(SimpleNamespace(path="x.parquet")):
        exhaust()


@pytest.mark.parametrize(
    "read",
    [
        read_shard,
        validate_shard,
        validate_row_group,
        read_segmentation,
        list_source,
        read_predicted_table,
        read_hub_table,
    ],
)
def test_exhausted_memory_is_raised_as_such(tmp_path, monkeypatch, read):
    with pytest.raises(MemoryError):
        read(tmp_path, monkeypatch)


def test_an_evaluation_that_exhausts_memory_names_what_to_do(monkeypatch):
    model = SimpleNamespace(load_state_dict=lambda _: None, to=lambda _: None)
    monkeypatch.setattr(evaluate_module, "build_model", lambda *_: model)
    monkeypatch.setattr(evaluate_module, "evaluation_rows", lambda *_: [])
    monkeypatch.setattr(evaluate_module, "accumulate_counts", exhaust)
    split = SimpleNamespace(rows=1)
    resources = SimpleNamespace(workers=1, read_cpus=1, threads=1, device="cpu")
    settings = config.build({})
    classes = SimpleNamespace(num_classes=2, ignore_id=255)
    task = evaluate_module._EvaluationTask(settings, classes, {}, SimpleNamespace(split=split), resources)
    with pytest.raises(OutOfMemoryError, match=r"not have enough memory .*malloc.*--eval\.mode slide"):
        evaluate_module._count_share(task, 0)
