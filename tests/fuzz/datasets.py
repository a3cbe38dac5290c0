"""Readers of prepared datasets, of interrupted jobs, and of the inputs of batch prediction."""

import json
import shutil
from functools import lru_cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from segray.core.classes import Classes
from segray.core.errors import DataError
from segray.data.convert import convert
from segray.data.convert.shards import ShardLimits
from segray.data.images import decode_image, decode_mask
from segray.data.manifest import MANIFEST, load_manifest_unverified, read_manifest
from segray.data.reader import SplitReader
from segray.data.sources.sample import SourceListing, SourceSample
from segray.data.storage import content_hash
from segray.data.validate.dataset import validate_dataset
from segray.inference.batch.outputs import Outputs
from segray.inference.batch.progress import JobProgress
from segray.inference.batch.sources import open_inputs
from segray.inference.batch.worker import BatchTask, segment_locally
from segray.inference.predictor import Predictor
from segray.models import checkpoint

from .checkpoints import CLASSES, checkpoint_content
from .images import rgb_pixels, seed_images, seed_masks
from .mutations import mutate_bytes
from .reader import Files, Reader
from .sources import tasks_in_this_process

NAMES = ("rgb.jpg", "rgb.png", "rgb.webp", "grey.jpg")


@lru_cache(maxsize=1)
def dataset_content() -> dict[str, bytes]:
    """The files of a dataset with five rows in two splits."""

    def sample(split: str, number: int, name: str) -> SourceSample:
        image, mask = seed_images()[name], seed_masks()["grey.png"]
        return SourceSample(
            split, f"{split}/{number}", name, "mask", 1, lambda: image, lambda: mask, columns={"city": "a"}
        )

    splits = ("train", "train", "train", "val")
    samples = tuple(sample(split, number, name) for number, (split, name) in enumerate(zip(splits, NAMES, strict=True)))
    listing = SourceListing(samples, Classes.from_names(CLASSES.names), absent_ok=True)
    with TemporaryDirectory() as folder, tasks_in_this_process():
        root = Path(folder, "dataset")
        convert.convert_dataset(listing, str(root), bounds=ShardLimits(group_rows=2))
        return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def dataset_files(_draw: Random) -> Files:
    files: dict[str, Any] = {}
    for name, data in dataset_content().items():
        files[name] = json.loads(data) if name == MANIFEST else pq.read_table(pa.BufferReader(data))
    return files


def repair_manifest(draw: Random, folder: Path) -> None:
    """Writes the sizes, row groups and digests of the shards to the manifest, as far as they can be computed."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        for split in manifest["splits"].values():
            for shard in split["shards"]:
                _repair_shard(shard, folder / shard["path"])
        (folder / MANIFEST).write_text(json.dumps(manifest))
        if draw.random() < 0.9:
            digest = load_manifest_unverified(str(folder)).content_digest()
            (folder / MANIFEST).write_text(json.dumps(manifest | {"digest": digest}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, DataError):
        return


def _repair_shard(shard: dict[str, Any], path: Path) -> None:
    shard["bytes"] = path.stat().st_size
    try:
        with pq.ParquetFile(path) as file:
            groups = range(file.metadata.num_row_groups)
            shard["row_groups"] = [file.metadata.row_group(group).num_rows for group in groups]
            shard["rows"] = sum(shard["row_groups"])
            digests = file.read(columns=["digest"])["digest"].to_pylist()
        shard["digest"] = content_hash(*(digest.encode() for digest in digests))
    except (OSError, pa.ArrowException, KeyError, AttributeError, TypeError, UnicodeDecodeError):
        return


def read_dataset(draw: Random, source: Path, _target: Path) -> None:
    root = str(source)
    with tasks_in_this_process():
        validate_dataset(root)
    manifest = read_manifest(root)
    split = manifest.split(draw.choice(("train", "val")))
    reader = SplitReader(root, split)
    reader.min_sizes()
    list(reader.class_pixels())
    reader.require_label_columns(["city"])
    reader.read_columns(["id", "city"])
    table = reader.read(range(len(reader.rows_per_group())))
    for image, mask in zip(table["image"].to_pylist(), table["mask"].to_pylist(), strict=True):
        try:
            decode_image(image, draw.choice((1, 2, 4, 8)))
            decode_mask(mask)
        except DataError:  # the loader names the row, see data.loader
            continue


@lru_cache(maxsize=1)
def predictor() -> Predictor:
    with TemporaryDirectory() as folder:
        for name, data in checkpoint_content().items():
            Path(folder, name).write_bytes(data)
        checkpoint.load_meta(Path(folder))
        return Predictor(Path(folder))


@lru_cache(maxsize=1)
def video() -> bytes:
    with TemporaryDirectory() as folder:
        path = str(Path(folder, "video.avi"))
        with_size = (64, 48)
        writer = cv2.VideoWriter(path, cv2.VideoWriter.fourcc(*"MJPG"), 5.0, with_size)
        for index in range(10):
            writer.write(np.roll(cv2.resize(rgb_pixels(), with_size), index, axis=1))
        writer.release()
        return Path(path).read_bytes()


def predict_files(draw: Random) -> Files:
    kind = draw.random()
    if kind < 0.4:
        names = draw.sample(sorted(seed_images()), 3)
        return {
            f"inputs/{folder}{name}": seed_images()[name] for name, folder in zip(names, ("", "b/", "c/"), strict=True)
        }
    if kind < 0.8:
        column = draw.choice(("image", "img"))
        images = [seed_images()[name] for name in NAMES]
        cells: list[Any] = images if draw.random() < 0.5 else [{"bytes": data, "path": None} for data in images]
        return {"inputs/a.parquet": pa.table({"id": [f"r/{row}.jpg" for row in range(4)], column: cells})}
    return {"inputs/video.avi": video()}


def read_inputs(draw: Random, source: Path, target: Path) -> None:
    files = sorted((source / "inputs").glob("*")) if (source / "inputs").is_dir() else []
    root = files[0] if files and files[0].suffix == ".avi" else draw.choice((source / "inputs", *files[:1]))
    inputs = open_inputs(str(root))
    outputs = Outputs(str(target / "masks"), CLASSES, draw.choice(("png", "parquet")), draw.random() < 0.3)
    segment_locally(inputs, BatchTask(predictor(), inputs.are_normalized, outputs), "cpu")


JOB = {"source": "a", "weights": "b", "settings": {"mode": "whole"}}


def job_files(_draw: Random) -> Files:
    done = {"images": 2, "problems": ["a: damaged"]}
    return {
        ".unfinished/job.json": JOB,
        ".unfinished/done/000000-0000.json": done,
        ".unfinished/done/000001-0000.json": done,
    }


def read_job(_draw: Random, source: Path, target: Path) -> None:
    """Resumes a job from a copy, because a resumed job writes to its folder."""
    out = target / "job"
    shutil.copytree(source, out)
    with JobProgress(str(out)).lock(JOB) as done:
        assert all(result.images >= 0 for result in done.values())


def mutate_video(draw: Random, data: bytes, _outside: Path) -> bytes:
    return mutate_bytes(draw, data)


READERS = {
    "dataset": Reader(dataset_files, read_dataset, 5, repair=repair_manifest),
    "predict": Reader(predict_files, read_inputs, 3, 30, follows_links=True, mutations={".avi": mutate_video}),
    "job": Reader(job_files, read_job, 6, has_tree=False),
}
