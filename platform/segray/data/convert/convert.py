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

OnProgress = Callable[[str, int, int], None]

SPLIT_NAME = re.compile(r"\w[\w.-]*")
_SCAN_ROWS = 64


def convert_dataset(
    found: SourceListing,
    out: str,
    *,
    ignore_ids: Iterable[int] = (),
    renaming: Renaming | None = None,
    on_bad: Literal["fail", "skip"] = "fail",
    bounds: ShardLimits | None = None,
    source: dict[str, str] | None = None,
    on_progress: OnProgress = lambda what, done, total: None,
) -> Manifest:
    """Writes a dataset on the connected Ray cluster and returns its manifest.

    The digests depend only on the samples, not on the size of the cluster. The shards are written directly into `out`,
    and the manifest is written last. A repeated call resumes an interrupted conversion.

    Args:
        found: samples and classes to convert. The manifest lists the splits in the order of their first sample. If the
            classes are `None`, every id up to the largest id in the masks is a class.
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
    _check_ids(found)
    bounds = bounds or ShardLimits()
    out = out if "://" in out else str(Path(out).absolute())  # Ray tasks run in other working directories
    resume.require_empty_output(out)
    known = found.classes or _counted_classes(found.samples, frozenset(ignore_ids), bounds, on_progress)
    labels = build_label_map(known, found.lookup, ignore_ids)
    classes, labels = apply_class_map(known, labels, renaming) if renaming else (known, labels)
    jobs = _jobs(found.samples, out, labels, bounds)
    with resume.conversion_lock(out, _splits(found.samples)):
        if on_bad == "fail":
            _refuse(out, found.problems, f"the source has {len(found.problems)} files or folders that do not fit")
        outcomes = _written(jobs, len(found.samples), on_progress)
        bad = [f"{name}: {why}" for outcome in outcomes for name, why in outcome.problems]
        left_out = [*found.problems, *bad]
        if on_bad == "fail":
            said = f"{len(bad)} of {len(found.samples)} samples cannot be used"
            _refuse(out, bad, said, _hint(outcomes, known, labels))
        _check_classes(outcomes, classes, may_be_absent=found.absent_ok or renaming is not None or bool(left_out))
        manifest = _manifest(classes, jobs, outcomes, source or {}, len(left_out))
        resume.commit_dataset(out, manifest, left_out)
    return manifest


def _check_ids(found: SourceListing) -> None:
    """Checks that the samples exist and that each id is unique and valid within its split."""
    samples = found.samples
    if not samples:
        raise DataError(f"the source holds no image with a mask.{format_list(found.problems)}")
    counts = Counter(sample.id for sample in samples)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise DataError(f"the source names {len(twice)} samples more than once:{format_list(twice)}")
    strange = [f"{sample.id} in split {sample.split}" for sample in samples if not _is_in_split(sample)]
    if strange:
        raise DataError(f"the source names {len(strange)} samples otherwise than SPLIT/NAME:{format_list(strange)}")


def _is_in_split(sample: SourceSample) -> bool:
    split, _, name = sample.id.partition("/")
    return split == sample.split and bool(name) and SPLIT_NAME.fullmatch(split) is not None


def _splits(samples: Sequence[SourceSample]) -> list[str]:
    return list(dict.fromkeys(sample.split for sample in samples))


def _counted_classes(
    samples: Sequence[SourceSample], ignored: frozenset[int], bounds: ShardLimits, on_progress: OnProgress
) -> Classes:
    """Scans the masks and returns classes that are named by their ids, up to the largest id found."""
    parts = [tuple(samples[start : start + _SCAN_ROWS]) for start in range(0, len(samples), _SCAN_ROWS)]
    found: set[int] = set()
    done = 0
    for index, ids in map_on_cluster(partial(scan_mask_ids, most_pixels=bounds.image_pixels), parts):
        found |= ids
        done += len(parts[index])
        on_progress("looking for class ids", done, len(samples))
    highest = max(found - ignored - {255, IGNORE_ID_16BIT}, default=0)
    if highest > 255:
        raise DataError(
            f"the masks hold ids up to {highest}; without class names expected ids up to 254; "
            "give --classes FILE with a name a line."
        )
    return Classes.from_names([f"class_{index}" for index in range(highest + 1)])


def _jobs(samples: Sequence[SourceSample], out: str, labels: LabelMap, bounds: ShardLimits) -> list[ShardJob]:
    members: dict[str, list[SourceSample]] = {split: [] for split in _splits(samples)}
    for sample in samples:
        members[sample.split].append(sample)
    columns = column_names(samples)
    return [
        ShardJob(f"{split}/part-{index:05d}.parquet", shard, out, labels, bounds, columns)
        for split in members
        for index, shard in enumerate(partition_samples(members[split], bounds))
    ]


def _written(jobs: list[ShardJob], rows: int, on_progress: OnProgress) -> list[ShardResult]:
    """Runs the jobs, reports their progress, and returns their results in the order of the jobs."""
    outcomes = {index: outcome for index, job in enumerate(jobs) if (outcome := resume.load_result(job))}
    todo = [index for index in range(len(jobs)) if index not in outcomes]
    rows_done = sum(one.rows for one in outcomes.values())
    on_progress("going on" if outcomes else "writing", rows_done, rows)
    for index, outcome in map_on_cluster(_write, [jobs[index] for index in todo]):
        outcomes[todo[index]] = outcome
        rows_done += outcome.rows
        on_progress("writing", rows_done, rows)
    return [outcomes[index] for index in range(len(jobs))]


def _write(job: ShardJob) -> ShardResult:
    resume.delete_result(job)
    outcome = write_shard(job)
    resume.save_result(job, outcome)
    return outcome


def _refuse(out: str, problems: Sequence[str], said: str, hint: str = "") -> None:
    """Raises a DataError with the first problems; a file lists all of them."""
    if problems:
        more = f"\nAll of them: {resume.write_problems(out, problems)}" if len(problems) > MAX_LISTED else ""
        raise DataError(
            f"{said}:{format_list(problems)}{more}{hint}\nCorrect them and give the same command again, which goes on "
            "with the rest; or leave them out with --on-bad skip."
        )


def _hint(outcomes: list[ShardResult], classes: Classes, labels: LabelMap) -> str:
    highest = max(outcome.highest_id for outcome in outcomes)
    if highest <= max(labels.lookup.keys() - {255, IGNORE_ID_16BIT}, default=-1):
        return ""
    return (
        f"\nThere are {classes.num_classes} classes, ids {labels.expected_ids}, but the masks hold ids up to "
        f"{highest}; add the missing names, or give --ignore-id for what is not a class."
    )


def _check_classes(outcomes: list[ShardResult], classes: Classes, may_be_absent: bool) -> None:
    """Checks that the masks and the classes agree."""
    num_classes = classes.num_classes
    highest = max(outcome.highest_id for outcome in outcomes)
    if highest < num_classes - 1 and not may_be_absent:
        raise DataError(
            f"there are {num_classes} class names (ids 0..{num_classes - 1}) but the largest id in the masks is "
            f"{highest}; expected {highest + 1} names; correct the list of classes."
        )
    if len([pixels for pixels in _class_pixels(outcomes) if pixels]) < 2:
        raise DataError(
            "the masks hold a single class beside the ignore id, so there is nothing to tell apart; "
            "expected at least two; note that 255 is always ignored: store a foreground of 255 as 1."
        )


def _manifest(
    classes: Classes, jobs: list[ShardJob], outcomes: list[ShardResult], source: dict[str, str], left_out: int
) -> Manifest:
    by_split: dict[str, list[ShardResult]] = {}
    for job, outcome in zip(jobs, outcomes, strict=True):
        by_split.setdefault(job.path.split("/")[0], []).append(outcome)
    return Manifest(
        format=FORMAT_VERSION,
        classes=classes,
        splits={name: _split(name, members) for name, members in by_split.items()},
        source=source,
        normalised=tuple(line for outcome in outcomes for line in outcome.normalised),
        left_out=left_out,
    ).with_digest()


def _split(name: str, outcomes: list[ShardResult]) -> Split:
    shards = tuple(shard for outcome in outcomes for shard in outcome.shards)
    rows = sum(shard.rows for shard in shards)
    if not rows:
        raise DataError(f"no sample of split {name} can be used, the first because: {outcomes[0].problems[0][1]}")
    return Split(
        shards=shards,
        class_pixels=tuple(_class_pixels(outcomes)),
        mean_height=sum(outcome.heights for outcome in outcomes) / rows,
        mean_width=sum(outcome.widths for outcome in outcomes) / rows,
    )


def _class_pixels(outcomes: list[ShardResult]) -> list[int]:
    pixels: list[int] = np.sum([outcome.class_pixels for outcome in outcomes], axis=0).tolist()
    return pixels
