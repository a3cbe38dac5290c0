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
from segray.data.convert.convert import convert_dataset
from segray.data.manifest import Manifest, read_manifest
from segray.data.sources import folder
from segray.data.sources.sample import SourceListing, SourceSample
from segray.data.storage import content_hash

BARE_LOOP, COUNTING_LOOP = "bare_loop", "bare_loop, masks alone decoded"
TENTH = "a tenth of the images"
MIB = 2**20
KINDS = 256  # number of distinct images
MIN_WATCHED = 10_000  # a tenth of fewer images is converted before the first memory sample


def write_pairs(root: str, size: int, images: int, out: Path) -> SourceListing:
    """Writes a folder of square image and mask files of `size` px, taken from a dataset, and returns its listing.

    Raises:
        DataError: the dataset does not exist.
    """
    manifest = read_manifest(root)
    split = next(iter(manifest.splits))
    kinds = load_encoded(root, split, size, min(KINDS, manifest.split(split).rows))
    for side in ("images", "masks"):
        (out / side / "train").mkdir(parents=True)
    for number, (image, mask) in enumerate(islice(cycle(kinds), images)):
        (out / "images" / "train" / f"{number:07d}.jpg").write_bytes(image)
        (out / "masks" / "train" / f"{number:07d}.png").write_bytes(mask)
    return SourceListing(folder.list_samples(str(out)).samples, manifest.classes, absent_ok=True)


def run_benchmark(
    found: SourceListing, place: Path, cores: int, turns: int, say: Callable[[str], None]
) -> BenchmarkReport:
    """Compares a conversion with the bare loops in alternating turns, on the connected cluster.

    The bare loop decodes every image and mask, hashes the bytes, counts the ids and discards the data. A second loop
    does not decode the images and so cannot detect damaged ones. It is measured to quantify the cost of decoding.

    Args:
        found: listing of the images to convert.
        place: destination folder.
        cores: number of processes of the bare loop; the cluster has the same number of CPUs.
        turns: number of timed turns of each candidate, after one warm-up turn.
        say: callback that receives progress messages.
    """
    say(f"{len(found.samples)} images, {turns} turns each ...")
    images = len(found.samples)
    with ProcessPoolExecutor(cores, get_context("spawn")) as pool:
        actions: list[Callable[[], object]] = [
            partial(_converted, found, place),
            partial(_bare, found, pool, cores, decodes=True),
            partial(_bare, found, pool, cores, decodes=False),
        ]
        taken = [[images / _seconds(action) for action in actions] for _ in range(turns + 1)][1:]
    ours, bare, counting = map(list, zip(*taken, strict=True))
    rows = [
        rate_row("prepare_images", BARE_LOOP, ours, bare, "images/s"),
        rate_row("prepare_images", COUNTING_LOOP, ours, counting, "images/s"),
    ]
    if is_supported() and images >= MIN_WATCHED:
        say("peak memory, all of it and a tenth ...")
        tenth = SourceListing(found.samples[: images // 10], found.classes, absent_ok=True)
        peaks = [_peak(one, place) / MIB for one in (found, tenth)]
        rows.append(time_row("prepare_memory", TENTH, peaks[:1], peaks[1:], "MiB"))
    case: dict[str, str | int] = {"images": images, "image_bytes": found.samples[0].size_bytes, "cores": cores}
    return BenchmarkReport(
        machine.describe_machine(torch.device("cpu")), case | _bounds(_converted(found, place)), rows
    )


def _seconds(action: Callable[[], object]) -> float:
    start = perf_counter()
    action()
    return perf_counter() - start


def _converted(found: SourceListing, place: Path) -> Manifest:
    out = place / "made"
    shutil.rmtree(out, ignore_errors=True)
    return convert_dataset(found, str(out))


def _bare(found: SourceListing, pool: ProcessPoolExecutor, cores: int, *, decodes: bool) -> list[int]:
    assert found.classes is not None
    shares = [found.samples[start::cores] for start in range(cores)]
    counts = pool.map(partial(_read_hash_count, found.classes, decodes), shares)
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


def _peak(found: SourceListing, place: Path) -> int:
    with monitor_memory(getpid()) as peak:
        _converted(found, place)
    return peak.memory


def _bounds(manifest: Manifest) -> dict[str, str | int]:
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    return {
        "shards": len(shards),
        "largest_shard_MiB": round(max(shard.bytes for shard in shards) / MIB),
        "largest_row_group": max(rows for shard in shards for rows in shard.row_groups),
    }
