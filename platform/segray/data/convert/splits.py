"""Splitting by fractions such as `0.8/0.1/0.1`; related samples, such as the frames of a video, stay in one split."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from segray.core.errors import DataError, format_list
from segray.data.sources.files import USUAL_SPLITS
from segray.data.sources.sample import SourceSample
from segray.data.storage import content_hash


def parse_fractions(text: str) -> dict[str, float]:
    """Parses the fractions of train and val, or of train, val and test.

    Raises:
        DataError: the text is not two or three numbers above 0 that sum to 1.
    """
    try:
        fractions = [float(part) for part in text.split("/")]
    except ValueError:
        fractions = []
    if len(fractions) not in (2, 3) or not all(part > 0 for part in fractions) or not abs(sum(fractions) - 1) < 1e-6:
        raise DataError(
            f"--split is {text}; expected fractions of train, val and test that sum to 1, such as 0.8/0.1/0.1."
        )
    return dict(zip(USUAL_SPLITS, fractions, strict=False))


def assign_splits(
    samples: Sequence[SourceSample], fractions: dict[str, float], group_by: str | None = None
) -> tuple[SourceSample, ...]:
    """Assigns the samples to new splits; the result does not depend on the order of the samples.

    The groups are ordered by a hash of their name. Each group goes to the split with the largest deficit.

    Args:
        samples: samples to split. Their previous splits are ignored, but remain part of the ids if there were several.
        fractions: fraction of each split.
        group_by: regular expression that is searched in the id without its split. Samples with the same first group (or
            the same whole match if there is no group) stay together. `None` splits the samples individually.

    Raises:
        DataError: `group_by` is not a valid regular expression or does not match an id, or a split would be empty.
    """
    short_ids = {sample.id: sample.id.partition("/")[2] for sample in samples}
    names = short_ids if len({sample.split for sample in samples}) == 1 else {name: name for name in short_ids}
    groups = _group_samples(samples, names if group_by is None else short_ids, group_by)
    assigned: dict[str, list[SourceSample]] = {name: [] for name in fractions}
    for key in sorted(groups, key=lambda key: content_hash(key.encode("utf-8", "surrogateescape"))):
        split = max(fractions, key=lambda name: fractions[name] * len(samples) - len(assigned[name]))
        assigned[split] += groups[key]
    empty = [name for name, members in assigned.items() if not members]
    if empty:
        raise DataError(
            f"--split leaves {', '.join(empty)} empty: there are {len(samples)} samples in {len(groups)} groups; "
            "use larger fractions, or a --group-by with smaller groups."
        )
    return tuple(
        replace(sample, split=name, id=f"{name}/{names[sample.id]}")
        for name, members in assigned.items()
        for sample in sorted(members, key=lambda sample: sample.id)
    )


def _group_samples(
    samples: Sequence[SourceSample], names: dict[str, str], group_by: str | None
) -> dict[str, list[SourceSample]]:
    try:
        pattern = re.compile("(.*)" if group_by is None else group_by, re.DOTALL)
    except re.error as error:
        raise DataError(f"--group-by is {group_by}, which is not a valid regular expression ({error}).") from error
    matches = {sample.id: pattern.search(names[sample.id]) for sample in samples}
    unmatched = [names[name] for name, match in matches.items() if match is None]
    if unmatched:
        raise DataError(f"--group-by {group_by} does not match {len(unmatched)} ids:{format_list(unmatched)}")
    groups = defaultdict[str, list[SourceSample]](list)
    for sample in samples:
        match = matches[sample.id]
        assert match is not None
        groups[match[1 if pattern.groups else 0] or ""].append(sample)
    return groups
