"""What the values of source masks mean for a dataset: the class of each id, merged, dropped and renamed as asked."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import yaml

from segray.core.classes import Classes, ignore_id
from segray.core.errors import DataError, did_you_mean

IGNORE_ID_16BIT = 65535
WILDCARD = "*"

Lookup = Mapping[int, int | None]
Renaming = Mapping[str, str | None]
"""Source class to the dataset's class, or to none: dropped. `*` stands for all that are not named."""


@dataclass(frozen=True)
class LabelMap:
    """What the values of source masks become.

    Attributes:
        num_classes: K, of the dataset.
        lookup: from a source id to the class, 0..K-1, or to none: not counted. Other ids are errors.
    """

    num_classes: int
    lookup: Lookup

    @property
    def ignore_id(self) -> int:
        """The dataset's mask value that is not counted."""
        return ignore_id(self.num_classes)

    @property
    def expected_ids(self) -> str:
        """The source ids that may occur, for people: `0..10 or 255`; 65535, which always may, is left out."""
        ids = sorted(index for index in self.lookup if index != IGNORE_ID_16BIT or len(self.lookup) == 1)
        runs = [[index for _, index in run] for _, run in groupby(enumerate(ids), lambda pair: pair[1] - pair[0])]
        return " or ".join(str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs)


def build_label_map(classes: Classes, lookup: Lookup | None, ignored: Iterable[int] = ()) -> LabelMap:
    """Returns what the ids of a source with these classes mean.

    Args:
        classes: of the source.
        lookup: the source's own; none takes an id for its class's.
        ignored: further ids that are not counted; the ignore id of so many classes never is, nor 65535.

    Raises:
        DataError: an ignored id is negative, or that of a class.
    """
    num_classes = classes.num_classes
    known = lookup if lookup is not None else {index: index for index in range(num_classes)}
    out = set(ignored)
    if min(out, default=0) < 0:
        raise DataError(f"--ignore-id is {min(out)}; expected an id of the masks, 0 or more.")
    conflicts = sorted(index for index in out if known.get(index) is not None)
    if conflicts:
        classes_only = LabelMap(num_classes, {index: target for index, target in known.items() if target is not None})
        raise DataError(
            f"--ignore-id {conflicts[0]} is also the id of a class: there are {num_classes} classes, ids "
            f"{classes_only.expected_ids}; leave out its name, renumber the masks, or drop the class with --map."
        )
    nothing = dict.fromkeys([ignore_id(num_classes), IGNORE_ID_16BIT, *out])
    return LabelMap(num_classes, nothing | dict(known))


def read_class_map(file: Path) -> Renaming:
    """Returns what a --map file says: YAML or JSON, `source class: class` or `source class: null`.

    Raises:
        DataError: it cannot be read, or is no such mapping.
    """
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"map {file} cannot be read ({error}); expected lines such as `van: car`.") from error
    if not isinstance(found, dict) or not all(isinstance(value, str | None) for value in found.values()):
        raise DataError(f"map {file} is no mapping of names; expected lines such as `van: car` or `sky: null`.")
    return {str(name): value for name, value in found.items()}


def apply_class_map(classes: Classes, labels: LabelMap, renaming: Renaming) -> tuple[Classes, LabelMap]:
    """Returns the classes and labels with source classes merged, dropped or renamed.

    Classes that are not named stay, unless `*` says otherwise. The classes are in the order of the first source class
    of each, and have its colour.

    Raises:
        DataError: a name is no class of the source, or fewer than two classes are left.
    """
    for name in renaming:
        if name not in (*classes.names, WILDCARD):
            raise DataError(f"--map names {name}, which is no class of the source{did_you_mean(name, classes.names)}.")
    targets = [
        renaming.get(name, renaming.get(WILDCARD, name) if WILDCARD in renaming else name) for name in classes.names
    ]
    kept = list(dict.fromkeys(target for target in targets if target is not None))
    if len(kept) < 2:
        raise DataError(f"--map leaves {len(kept)} of {classes.num_classes} classes; expected at least 2.")
    colours = tuple(classes.palette[targets.index(name)] for name in kept)
    class_of = {index: None if target is None else kept.index(target) for index, target in enumerate(targets)}
    lookup = {index: None if old is None else class_of[old] for index, old in labels.lookup.items()}
    return Classes(names=tuple(kept), palette=colours), LabelMap(len(kept), lookup)
