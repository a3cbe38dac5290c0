"""Benchmark of dataset conversion: throughput and peak memory, compared with bare loops that read, hash and count."""

import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from io import BytesIO
from itertools import cycle, islice
from multiprocessing import get_context
from os import getpid
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from PIL import Image

from benchmarks import machine
from benchmarks.datasets import load_encoded
from benchmarks.interleave import BenchmarkReport, rate_row, time_row
from benchmarks.memory_monitor import is_supported, monitor_memory
from segray.core.classes import Classes
from segray.core.numbers import MIB
from segray.data.convert.convert import convert_dataset
from segray.data.manifest import Manifest, read_manifest
from segray.data.sources import folder
from segray.data.sources.sample import SourceListing, SourceSample
from segray.data.storage import content_hash

BARE_LOOP, COUNTING_LOOP = "bare_loop", "bare_loop, masks alone decoded"
TENTH = "a tenth of the images"
NUM_DISTINCT = 256  # images
MIN_MONITORED = 10_000  # a tenth of fewer images is converted before the first memory sample


def write_pairs(root: str, size: int, images: int, out: Path) -> SourceListing:
    """Writes a folder of square image and mask files of `size` px, taken from a dataset, and returns its listing.

    Raises:
        DataError: the dataset does not exist.
    """
    manifest = read_manifest(root)
    split = next(iter(manifest.splits))
    pairs = load_encoded(root, split, size, min(NUM_DISTINCT, manifest.split(split).rows))
    for side in ("images", "masks"):
        (out / side / "train").mkdir(parents=True)
    for number, (image, mask) in enumerate(islice(cycle(pairs), images)):
        (out / "images" / "train" / f"{number:07d}.jpg").write_bytes(image)
        (out / "masks" / "train" / f"{number:07d}.png").write_bytes(mask)
    return SourceListing(folder.list_samples(str(out)).samples, manifest.classes, absent_ok=True)


def run_benchmark(
    listing: SourceListing, work_dir: Path, cores: int, turns: int, log: Callable[[str], None]
) -> BenchmarkReport:
    """Compares a conversion with the bare loops in alternating turns, on the connected cluster.

    The bare loop decodes every image and mask, hashes the bytes, counts the ids and discards the data. A second loop
    does not decode the images and so cannot detect damaged ones. It is measured to quantify the cost of decoding.

    Args:
        listing: listing of the images to convert.
        work_dir: folder in which the datasets are written.
        cores: number of processes of the bare loop; the cluster has the same number of CPUs.
        turns: number of timed turns of each candidate, after one warm-up turn.
        log: callback that receives progress messages.
    """
    log(f"{len(listing.samples)} images, {turns} turns per candidate ...")
    images = len(listing.samples)
    with ProcessPoolExecutor(cores, get_context("spawn")) as pool:
        candidates: list[Callable[[], object]] = [
            partial(_convert, listing, work_dir),
            partial(_bare_loop, listing, pool, cores, decodes=True),
            partial(_bare_loop, listing, pool, cores, decodes=False),
        ]
        rates = [[images / _time(candidate) for candidate in candidates] for _ in range(turns + 1)][1:]
    ours, bare, counting = map(list, zip(*rates, strict=True))
    rows = [
        rate_row("prepare_images", BARE_LOOP, ours, bare, "images/s"),
        rate_row("prepare_images", COUNTING_LOOP, ours, counting, "images/s"),
    ]
    if is_supported() and images >= MIN_MONITORED:
        log("peak memory for all images and for a tenth of them ...")
        tenth = SourceListing(listing.samples[: images // 10], listing.classes, absent_ok=True)
        peaks = [_peak(part, work_dir) / MIB for part in (listing, tenth)]
        rows.append(time_row("prepare_memory", TENTH, peaks[:1], peaks[1:], "MiB"))
    case: dict[str, str | int] = {"images": images, "image_bytes": listing.samples[0].size_bytes, "cores": cores}
    return BenchmarkReport(
        machine.describe_machine(torch.device("cpu")), case | _describe_shards(_convert(listing, work_dir)), rows
    )


def _time(candidate: Callable[[], object]) -> float:
    start = perf_counter()
    candidate()
    return perf_counter() - start


def _convert(listing: SourceListing, work_dir: Path) -> Manifest:
    out = work_dir / "converted"
    shutil.rmtree(out, ignore_errors=True)
    return convert_dataset(listing, str(out))


def _bare_loop(listing: SourceListing, pool: ProcessPoolExecutor, cores: int, *, decodes: bool) -> list[int]:
    assert listing.classes is not None
    partitions = [listing.samples[start::cores] for start in range(cores)]
    counts = pool.map(partial(_read_hash_count, listing.classes, decodes), partitions)
    total: list[int] = np.sum(list(counts), axis=0).tolist()
    return total


def _read_hash_count(classes: Classes, decodes: bool, samples: tuple[SourceSample, ...]) -> list[int]:
    counts = np.zeros(classes.ignore_id + 1, np.int64)
    for sample in samples:
        image, mask = sample.read_image(), sample.read_mask()
        assert isinstance(mask, bytes)
        if decodes:
            Image.open(BytesIO(image)).load()
        content_hash(image, mask)
        ids = np.asarray(Image.open(BytesIO(mask)))
        counts += np.bincount(ids.reshape(-1), minlength=len(counts))
    return counts.tolist()


def _peak(listing: SourceListing, work_dir: Path) -> int:
    with monitor_memory(getpid()) as peak:
        _convert(listing, work_dir)
    return peak.memory


def _describe_shards(manifest: Manifest) -> dict[str, str | int]:
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    return {
        "shards": len(shards),
        "largest_shard_MiB": round(max(shard.bytes for shard in shards) / MIB),
        "largest_row_group": max(rows for shard in shards for rows in shard.row_groups),
    }
