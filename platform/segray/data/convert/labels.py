"""Mapping from the ids of source masks to dataset classes, including merged, dropped and renamed classes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from segray.core.classes import Classes, ignore_id
from segray.core.errors import DataError, did_you_mean
from segray.core.parsing import parse_yaml, summarize_error

IGNORE_ID_16BIT = 65535
WILDCARD = "*"

Lookup = Mapping[int, int | None]
Renaming = Mapping[str, str | None]
"""Mapping from a source class to a dataset class, or to `None` to drop it. `*` matches all other classes."""


@dataclass(frozen=True)
class LabelMap:
    """Mapping from the ids of source masks to dataset classes.

    Attributes:
        num_classes: number of classes K of the dataset.
        lookup: class 0..K-1 of each source id, or `None` for an ignored id. Other ids are errors.
    """

    num_classes: int
    lookup: Lookup

    @property
    def ignore_id(self) -> int:
        """Mask value of ignored pixels in the dataset."""
        return ignore_id(self.num_classes)

    @property
    def expected_ids(self) -> str:
        """Allowed source ids as text, for example `0..10 or 255`; 65535 is always allowed and not listed."""
        ids = sorted(index for index in self.lookup if index != IGNORE_ID_16BIT or len(self.lookup) == 1)
        runs = [[index for _, index in run] for _, run in groupby(enumerate(ids), lambda pair: pair[1] - pair[0])]
        return " or ".join(str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs)


def build_label_map(classes: Classes, lookup: Lookup | None, ignored: Iterable[int] = ()) -> LabelMap:
    """Builds the label map of a source with the given classes.

    Args:
        classes: classes of the source.
        lookup: class of each id in the source masks, or `None` to use each class index as its id.
        ignored: additional ids to ignore. The ignore id for this number of classes and 65535 are always ignored.

    Raises:
        DataError: an ignored id is negative or is the id of a class.
    """
    num_classes = classes.num_classes
    class_of_id = lookup if lookup is not None else {index: index for index in range(num_classes)}
    ignored_ids = set(ignored)
    if min(ignored_ids, default=0) < 0:
        raise DataError(f"--ignore-id is {min(ignored_ids)}; expected an id of the masks, 0 or more.")
    conflicts = sorted(index for index in ignored_ids if class_of_id.get(index) is not None)
    if conflicts:
        class_ids = {index: target for index, target in class_of_id.items() if target is not None}
        expected_ids = LabelMap(num_classes, class_ids).expected_ids
        raise DataError(
            f"--ignore-id {conflicts[0]} is also the id of a class: there are {num_classes} classes, ids {expected_ids}"
            "; remove its class name, renumber the masks, or drop the class with --map."
        )
    ignored_lookup = dict.fromkeys([ignore_id(num_classes), IGNORE_ID_16BIT, *ignored_ids])
    return LabelMap(num_classes, ignored_lookup | dict(class_of_id))


def read_class_map(file: Path) -> Renaming:
    """Reads a --map file: YAML or JSON with entries `source class: class` or `source class: null`.

    Raises:
        DataError: the file cannot be read or is not such a mapping.
    """
    try:
        content = parse_yaml(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"map {file} cannot be read ({summarize_error(error)}); expected lines such as `van: car`."
        ) from error
    if not isinstance(content, dict) or not all(isinstance(value, str | None) for value in content.values()):
        raise DataError(f"map {file} is not a mapping of names; expected lines such as `van: car` or `sky: null`.")
    return {str(name): value for name, value in content.items()}


def apply_class_map(classes: Classes, labels: LabelMap, renaming: Renaming) -> tuple[Classes, LabelMap]:
    """Returns the classes and the label map after merging, dropping and renaming source classes.

    Classes that are not named are kept, unless `*` is given. The new classes are ordered by their first source class
    and take its colour.

    Raises:
        DataError: a name is not a class of the source, or fewer than two classes remain.
    """
    for name in renaming:
        if name not in (*classes.names, WILDCARD):
            raise DataError(
                f"--map contains {name}, which is not a class of the source{did_you_mean(name, classes.names)}."
            )
    targets = [
        renaming.get(name, renaming.get(WILDCARD, name) if WILDCARD in renaming else name) for name in classes.names
    ]
    kept = list(dict.fromkeys(target for target in targets if target is not None))
    if len(kept) < 2:
        raise DataError(f"--map leaves {len(kept)} of {classes.num_classes} classes; expected at least 2.")
    colours = tuple(classes.palette[targets.index(name)] for name in kept)
    class_of = {index: None if target is None else kept.index(target) for index, target in enumerate(targets)}
    lookup = {index: None if target is None else class_of[target] for index, target in labels.lookup.items()}
    return Classes(names=tuple(kept), palette=colours), LabelMap(len(kept), lookup)
