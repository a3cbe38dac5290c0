"""From a source to a dataset: Ray Data writes one shard a task, the driver adds the manifest and the name."""

import errno
import pickle
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray.data

from segray.classes import Classes
from segray.data.schema import FORMAT, MANIFEST, Manifest, Split
from segray.data.shards import WIDE_IGNORE, Job, Labels, Outcome, cut, source_ids, write
from segray.data.sources.sample import Sample
from segray.errors import DataError, listing

Progress = Callable[[str, int, int], None]

MOST_GROUP_ROWS = 16
GROUP_BYTES = 4 * 2**20
_SCAN_ROWS = 64


def convert(
    samples: Sequence[Sample],
    classes: Classes | None,
    out: str,
    *,
    ignore_ids: Iterable[int] = (),
    source: dict[str, str] | None = None,
    on_progress: Progress = lambda what, done, total: None,
    shard_bytes: int = 128 * 2**20,
    row_group_rows: int | None = None,
    absent_ok: bool = False,
) -> Manifest:
    """Writes a dataset on the connected Ray cluster and returns its manifest.

    The same samples give the same digests whatever the size of the cluster. The dataset is written into a
    hidden folder beside `out` and renamed at the end, so `out` is whole or not there; the rename needs a folder
    that every node sees under this path, a bucket cannot be written yet.

    Args:
        samples: what to convert; splits stand in the manifest in the order of their first sample.
        classes: names and palette; without them every id up to the largest in the masks is a class.
        out: folder to make; it may exist if it is empty.
        ignore_ids: ids of the source masks that become the ignore id; 255 and 65535 do anyway.
        source: where the data came from, for people; it is copied into the manifest.
        on_progress: called with what is being done, the samples done and the samples in all.
        shard_bytes: size from which a shard is closed.
        row_group_rows: rows of a row group; none takes 16, or fewer where images are so large that those were more
            than 4 MiB: training holds a row group in memory for every image of a batch.
        absent_ok: whether the last classes may occur in no mask.

    Raises:
        DataError: samples cannot be used (all are listed), ids and classes disagree, or `out` is not free.
    """
    final = _free_folder(out)
    ignored = frozenset(ignore_ids)
    known = classes or _counted_classes(samples, ignored, on_progress)
    _check_ignored(ignored, known.num_classes)
    partial = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.partial")
    jobs = _jobs(
        samples, partial, Labels(known.num_classes, ignored), shard_bytes, row_group_rows or _group_rows(samples)
    )
    try:
        for split in _splits(samples):
            (partial / split).mkdir(parents=True)
        outcomes = _written(jobs, len(samples), on_progress)
        _check(outcomes, known, absent_ok)
        manifest = _manifest(known, outcomes, source or {})
        (partial / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
        partial.rename(final)
    except OSError as error:
        taken = error.errno in {errno.ENOTEMPTY, errno.EEXIST}  # by somebody who was quicker
        why = "is not empty" if taken else f"cannot be written ({error})"
        raise DataError(f"output folder {out} {why}; choose another folder.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def _group_rows(samples: Sequence[Sample]) -> int:
    mean_bytes = sum(sample.size_bytes for sample in samples) / max(1, len(samples))
    return max(1, min(MOST_GROUP_ROWS, int(GROUP_BYTES / max(1.0, mean_bytes))))


def _free_folder(out: str) -> Path:
    if "://" in out:
        raise DataError(f"output {out} is not a folder; write to a folder and copy that to the bucket.")
    # Absolute, because tasks run in other working directories.
    final = Path(out).absolute()
    if final.exists() and not final.is_dir():
        raise DataError(f"output folder {out} is a file; expected a folder that is empty or not there yet.")
    if final.is_dir() and any(final.iterdir()):
        raise DataError(f"output folder {out} is not empty; choose another, or remove it first.")
    return final


def _splits(samples: Sequence[Sample]) -> list[str]:
    return list(dict.fromkeys(sample.split for sample in samples))


def _counted_classes(samples: Sequence[Sample], ignored: frozenset[int], on_progress: Progress) -> Classes:
    """Returns classes named by their ids, as many as the largest id in the masks asks for."""
    parts = [tuple(samples[start : start + _SCAN_ROWS]) for start in range(0, len(samples), _SCAN_ROWS)]
    found: set[int] = set()
    done = 0
    for index, ids in _spread(source_ids, parts):
        found |= ids
        done += len(parts[index])
        on_progress("looking for class ids", done, len(samples))
    highest = max(found - ignored - {255, WIDE_IGNORE}, default=0)
    if highest > 255:
        raise DataError(
            f"the masks hold ids up to {highest}; without class names expected ids up to 254; "
            "give --classes FILE with a name a line."
        )
    return Classes.named([f"class_{index}" for index in range(highest + 1)])


def _check_ignored(ignored: frozenset[int], num_classes: int) -> None:
    if min(ignored, default=0) < 0:
        raise DataError(f"--ignore-id is {min(ignored)}; expected an id of the masks, 0 or more.")
    conflicts = sorted(index for index in ignored if index < num_classes)
    if conflicts:
        raise DataError(
            f"--ignore-id {conflicts[0]} is also the id of a class: there are {num_classes} classes, "
            f"ids 0..{num_classes - 1}; expected an ignored id above them; leave out its name, or renumber the masks."
        )


def _jobs(samples: Sequence[Sample], root: Path, labels: Labels, shard_bytes: int, row_group_rows: int) -> list[Job]:
    jobs = []
    for split in _splits(samples):
        members = [sample for sample in samples if sample.split == split]
        for index, shard in enumerate(cut(members, shard_bytes, row_group_rows)):
            path = f"{split}/part-{index:05d}.parquet"
            jobs.append(Job(path, shard, str(root), labels, row_group_rows))
    return jobs


def _written(jobs: list[Job], rows: int, on_progress: Progress) -> list[Outcome]:
    """Returns what came of each job, in the order of the jobs, while reporting them as they end."""
    outcomes: dict[int, Outcome] = {}
    on_progress("writing", 0, rows)
    for index, outcome in _spread(write, jobs):
        outcomes[index] = outcome
        on_progress("writing", sum(one.rows for one in outcomes.values()), rows)
    return [outcomes[index] for index in range(len(jobs))]


def _spread(function: Callable[[Any], Any], inputs: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    """Yields (index, function(input)) as they come, each input being one task of the cluster.

    Raises:
        DataError: the function raised one.
    """

    def task(row: dict[str, Any]) -> dict[str, Any]:
        try:
            result = function(pickle.loads(row["input"]))
        except DataError as error:
            # As a value: Ray would wrap it in an error of its own and retry.
            result = error
        return {"index": row["index"], "result": pickle.dumps(result)}

    rows = [{"index": index, "input": pickle.dumps(one)} for index, one in enumerate(inputs)]
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    with ray.data.DataContext.current(context):
        tasks = ray.data.from_items(rows, override_num_blocks=len(rows)).map(task)
    for row in tasks.iter_rows():
        result = pickle.loads(row["result"])
        if isinstance(result, DataError):
            raise result
        yield row["index"], result


def _check(outcomes: list[Outcome], classes: Classes, absent_ok: bool) -> None:
    """Refuses a conversion with unusable samples, or whose masks and classes disagree."""
    num_classes = classes.num_classes
    highest = max(outcome.highest_id for outcome in outcomes)
    problems = [problem for outcome in outcomes for problem in outcome.problems]
    if problems:
        hint = ""
        if highest >= num_classes:
            hint = (
                f"\nThere are {num_classes} class names (ids 0..{num_classes - 1}) but the masks hold ids up to "
                f"{highest}; add the missing names, or give --ignore-id for what is not a class."
            )
        rows = sum(outcome.rows for outcome in outcomes)
        raise DataError(f"{len(problems)} of {rows} samples cannot be used:{listing(problems)}{hint}")
    if highest < num_classes - 1 and not absent_ok:
        raise DataError(
            f"there are {num_classes} class names (ids 0..{num_classes - 1}) but the largest id in the masks is "
            f"{highest}; expected {highest + 1} names; correct the list of classes."
        )
    if len([pixels for pixels in _class_pixels(outcomes) if pixels]) < 2:
        raise DataError(
            "the masks hold a single class beside the ignore id, so there is nothing to tell apart; "
            "expected at least two; note that 255 is always ignored: store a foreground of 255 as 1."
        )


def _manifest(classes: Classes, outcomes: list[Outcome], source: dict[str, str]) -> Manifest:
    by_split: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_split.setdefault(outcome.shard.path.split("/")[0], []).append(outcome)
    return Manifest(
        format=FORMAT,
        classes=classes,
        splits={name: _split(members) for name, members in by_split.items()},
        source=source,
        normalised=tuple(line for outcome in outcomes for line in outcome.normalised),
    ).sealed()


def _split(outcomes: list[Outcome]) -> Split:
    rows = sum(outcome.rows for outcome in outcomes)
    return Split(
        shards=tuple(outcome.shard for outcome in outcomes),
        class_pixels=tuple(_class_pixels(outcomes)),
        mean_height=sum(outcome.heights for outcome in outcomes) / rows,
        mean_width=sum(outcome.widths for outcome in outcomes) / rows,
    )


def _class_pixels(outcomes: list[Outcome]) -> list[int]:
    pixels: list[int] = np.sum([outcome.class_pixels for outcome in outcomes], axis=0).tolist()
    return pixels
