"""Conversion of a source to a dataset: Ray tasks write the shards, the driver writes the manifest."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from segray.core.classes import Classes
from segray.core.errors import MAX_LISTED, DataError, format_list
from segray.data.convert import resume
from segray.data.convert.labels import IGNORE_ID_16BIT, LabelMap, Renaming, apply_class_map, build_label_map
from segray.data.convert.metadata import column_names
from segray.data.convert.shards import ShardJob, ShardLimits, ShardResult, partition_samples, scan_mask_ids, write_shard
from segray.data.manifest import FORMAT_VERSION, Manifest, Split
from segray.data.ray_map import map_on_cluster
from segray.data.sources.sample import SourceListing, SourceSample
from segray.data.storage import filesystem, require_writable

OnProgress = Callable[[str, int, int], None]

SPLIT_NAME = re.compile(r"\w[\w.-]*")
_SCAN_ROWS = 64


def convert_dataset(
    listing: SourceListing,
    out: str,
    *,
    ignore_ids: Iterable[int] = (),
    renaming: Renaming | None = None,
    on_bad: Literal["fail", "skip"] = "fail",
    bounds: ShardLimits | None = None,
    source: dict[str, str] | None = None,
    on_progress: OnProgress = lambda stage, done, total: None,
) -> Manifest:
    """Writes a dataset on the connected Ray cluster and returns its manifest.

    The digests depend only on the samples, not on the size of the cluster. The shards are written directly into `out`,
    and the manifest is written last. A repeated call resumes an interrupted conversion.

    Args:
        listing: samples and classes to convert. The manifest lists the splits in the order of their first sample. If
            the classes are `None`, every id up to the largest id in the masks is a class.
        out: folder to create, which every node must see under this path, or a URI. It may contain an unfinished
            conversion.
        ignore_ids: ids of the source masks that become the ignore id, in addition to 255 and 65535.
        renaming: mapping that merges, drops or renames classes.
        on_bad: handling of samples that cannot be used: `fail` raises an error that lists all of them, `skip` writes
            them to a list next to the manifest.
        bounds: size limits of shards, row groups and images.
        source: origin of the data, which is copied into the manifest for information.
        on_progress: callback that receives the name of the current stage, the number of samples done and the total
            number of samples.

    Raises:
        DataError: samples cannot be used (all are listed), ids and classes disagree, or `out` is in use or not empty.
    """
    _check_ids(listing)
    bounds = bounds or ShardLimits()
    out = out if "://" in out else str(Path(out).absolute())  # Ray tasks run in other working directories
    resume.require_empty_output(out)
    samples = listing.samples
    source_classes = listing.classes or _scan_classes(samples, frozenset(ignore_ids), bounds, on_progress)
    labels = build_label_map(source_classes, listing.lookup, ignore_ids)
    classes, labels = apply_class_map(source_classes, labels, renaming) if renaming else (source_classes, labels)
    jobs = _shard_jobs(samples, out, labels, bounds)
    with resume.conversion_lock(out, _splits(samples)):
        if on_bad == "fail":
            summary = f"{len(listing.problems)} files or folders of the source cannot be used"
            _raise_problems(out, listing.problems, summary)
        results = _write_shards(jobs, len(samples), on_progress)
        bad_samples = [f"{name}: {reason}" for result in results for name, reason in result.problems]
        if on_bad == "fail":
            summary = f"{len(bad_samples)} of {len(samples)} samples cannot be used"
            _raise_problems(out, bad_samples, summary, _unknown_ids_hint(results, source_classes, labels))
        skipped = [*listing.problems, *bad_samples]
        _check_classes(results, classes, may_be_absent=listing.absent_ok or renaming is not None or bool(skipped))
        manifest = _build_manifest(classes, jobs, results, source or {}, len(skipped))
        resume.commit_dataset(out, manifest, skipped)
    return manifest


def _check_ids(listing: SourceListing) -> None:
    """Checks that the samples exist and that each id is unique and valid within its split."""
    samples = listing.samples
    if not samples:
        raise DataError(f"the source contains no image with a mask.{format_list(listing.problems)}")
    counts = Counter(sample.id for sample in samples)
    duplicates = [name for name, count in counts.items() if count > 1]
    if duplicates:
        raise DataError(f"{len(duplicates)} sample ids of the source are not unique:{format_list(duplicates)}")
    invalid = [f"{sample.id} in split {sample.split}" for sample in samples if not _has_valid_id(sample)]
    if invalid:
        raise DataError(
            f"{len(invalid)} sample ids of the source are invalid; expected SPLIT/NAME:{format_list(invalid)}"
        )


def _has_valid_id(sample: SourceSample) -> bool:
    split, _, name = sample.id.partition("/")
    return split == sample.split and bool(name) and SPLIT_NAME.fullmatch(split) is not None


def _splits(samples: Sequence[SourceSample]) -> list[str]:
    return list(dict.fromkeys(sample.split for sample in samples))


def _scan_classes(
    samples: Sequence[SourceSample], ignored: frozenset[int], bounds: ShardLimits, on_progress: OnProgress
) -> Classes:
    """Scans the masks and returns classes that are named by their ids, up to the largest id found."""
    chunks = [tuple(samples[start : start + _SCAN_ROWS]) for start in range(0, len(samples), _SCAN_ROWS)]
    mask_ids: set[int] = set()
    samples_done = 0
    for index, chunk_ids in map_on_cluster(partial(scan_mask_ids, max_pixels=bounds.image_pixels), chunks):
        mask_ids |= chunk_ids
        samples_done += len(chunks[index])
        on_progress("scanning class ids", samples_done, len(samples))
    highest = max(mask_ids - ignored - {255, IGNORE_ID_16BIT}, default=0)
    if highest > 255:
        raise DataError(
            f"the masks contain ids up to {highest}; expected at most 254 without class names; pass --classes FILE "
            "with one name per line."
        )
    return Classes.from_names([f"class_{index}" for index in range(highest + 1)])


def _shard_jobs(samples: Sequence[SourceSample], out: str, labels: LabelMap, bounds: ShardLimits) -> list[ShardJob]:
    by_split: dict[str, list[SourceSample]] = {split: [] for split in _splits(samples)}
    for sample in samples:
        by_split[sample.split].append(sample)
    columns = column_names(samples)
    return [
        ShardJob(f"{split}/part-{index:05d}.parquet", shard, out, labels, bounds, columns)
        for split, split_samples in by_split.items()
        for index, shard in enumerate(partition_samples(split_samples, bounds))
    ]


def _write_shards(jobs: list[ShardJob], rows: int, on_progress: OnProgress) -> list[ShardResult]:
    """Runs the jobs, reports their progress, and returns their results in the order of the jobs."""
    results = {index: result for index, job in enumerate(jobs) if (result := resume.load_result(job))}
    remaining = [index for index in range(len(jobs)) if index not in results]
    rows_done = sum(result.rows for result in results.values())
    on_progress("resuming" if results else "writing", rows_done, rows)
    for index, result in map_on_cluster(_run_job, [jobs[index] for index in remaining]):
        require_writable(filesystem(jobs[0].root)[1])  # the driver holds the lease; its tasks do not know it
        results[remaining[index]] = result
        rows_done += result.rows
        on_progress("writing", rows_done, rows)
    return [results[index] for index in range(len(jobs))]


def _run_job(job: ShardJob) -> ShardResult:
    resume.delete_result(job)
    result = write_shard(job)
    resume.save_result(job, result)
    return result


def _raise_problems(out: str, problems: Sequence[str], summary: str, hint: str = "") -> None:
    """Raises a DataError with the first problems, if any; a file lists all of them."""
    if problems:
        more = f"\nFull list: {resume.write_problems(out, problems)}" if len(problems) > MAX_LISTED else ""
        raise DataError(
            f"{summary}:{format_list(problems)}{more}{hint}\nCorrect them and run the same command again to resume, or "
            "skip them with --on-bad skip."
        )


def _unknown_ids_hint(results: list[ShardResult], classes: Classes, labels: LabelMap) -> str:
    highest = max(result.highest_id for result in results)
    if highest <= max(labels.lookup.keys() - {255, IGNORE_ID_16BIT}, default=-1):
        return ""
    return (
        f"\nThere are {classes.num_classes} classes, ids {labels.expected_ids}, but the masks contain ids up to "
        f"{highest}; add the missing class names, or pass --ignore-id for ids that are not classes."
    )


def _check_classes(results: list[ShardResult], classes: Classes, may_be_absent: bool) -> None:
    """Checks that the masks and the classes agree."""
    num_classes = classes.num_classes
    highest = max(result.highest_id for result in results)
    if highest < num_classes - 1 and not may_be_absent:
        raise DataError(
            f"there are {num_classes} class names (ids 0..{num_classes - 1}) but the largest id in the masks is "
            f"{highest}; expected {highest + 1} names; correct the list of classes."
        )
    if len([pixels for pixels in _class_pixels(results) if pixels]) < 2:
        raise DataError(
            "the masks contain fewer than two classes besides the ignore id; expected at least two; 255 is always "
            "ignored, so store a foreground of 255 as 1."
        )


def _build_manifest(
    classes: Classes, jobs: list[ShardJob], results: list[ShardResult], source: dict[str, str], num_skipped: int
) -> Manifest:
    by_split: dict[str, list[ShardResult]] = {}
    for job, result in zip(jobs, results, strict=True):
        by_split.setdefault(job.path.split("/")[0], []).append(result)
    return Manifest(
        format=FORMAT_VERSION,
        classes=classes,
        splits={name: _build_split(name, split_results) for name, split_results in by_split.items()},
        source=source,
        normalised=tuple(line for result in results for line in result.normalised),
        left_out=num_skipped,
    ).with_digest()


def _build_split(name: str, results: list[ShardResult]) -> Split:
    shards = tuple(shard for result in results for shard in result.shards)
    rows = sum(shard.rows for shard in shards)
    if not rows:
        raise DataError(f"no sample of split {name} can be used; the first problem: {results[0].problems[0][1]}")
    return Split(
        shards=shards,
        class_pixels=tuple(_class_pixels(results)),
        mean_height=sum(result.heights for result in results) / rows,
        mean_width=sum(result.widths for result in results) / rows,
    )


def _class_pixels(results: list[ShardResult]) -> list[int]:
    pixels: list[int] = np.sum([result.class_pixels for result in results], axis=0).tolist()
    return pixels
