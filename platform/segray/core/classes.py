"""Classes of a dataset: names, colours and the ignored id."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from segray.core.errors import DataError
from segray.core.parsing import parse_json, summarize_error

ChannelValue = Annotated[int, Field(ge=0, le=255)]
Colour = tuple[ChannelValue, ChannelValue, ChannelValue]


class Classes(BaseModel):
    """The classes of a dataset.

    Attributes:
        names: unique names of the class ids 0..K-1.
        palette: RGB colours of the class ids 0..K-1, with values 0..255.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    names: tuple[str, ...]
    palette: tuple[Colour, ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.names:
            raise ValueError("a dataset needs at least one class")
        invalid = [name for name in self.names if not is_valid_name(name)]
        if invalid:
            raise ValueError(f"a class name is {invalid[0]!a}; expected text")
        if duplicates := _duplicates(self.names):
            raise ValueError(f"class names are repeated: {', '.join(duplicates)}; expected unique names")
        if len(self.palette) != len(self.names):
            raise ValueError(f"{len(self.names)} class names but {len(self.palette)} colours")
        return self

    @property
    def num_classes(self) -> int:
        """Number of classes K, without the ignored id."""
        return len(self.names)

    @property
    def ignore_id(self) -> int:
        """Mask value that is excluded from training and metrics: 255, or 65535 with 256 or more classes."""
        return ignore_id(self.num_classes)

    @classmethod
    def from_names(cls, names: list[str] | tuple[str, ...]) -> Self:
        """Returns classes with these names and the default palette."""
        return cls(names=tuple(names), palette=tuple(default_palette(len(names))))


def ignore_id(num_classes: int) -> int:
    """Returns the ignored id of a dataset with this number of classes: the largest value of its mask dtype."""
    return 255 if num_classes < 256 else 65535


def default_palette(num_colours: int) -> list[Colour]:
    """Returns distinct RGB colours from the bit-interleaving rule of Pascal VOC, without black."""
    return [_voc_colour(index) for index in range(1, num_colours + 1)]


def _voc_colour(index: int) -> Colour:
    channels = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            channels[channel] |= ((index >> (3 * bit + channel)) & 1) << (7 - bit)
    return (channels[0], channels[1], channels[2])


def read_class_names(path: Path) -> list[str]:
    """Returns the class names in a file: one name per line (# starts a comment), or a JSON list.

    Raises:
        DataError: the file is missing or not text, or its names are invalid, repeated or empty.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"classes file {path} cannot be read ({error}); expected one class name per line.") from error
    if text.lstrip().startswith(("[", "{")):
        names = _json_names(path, text)
    else:
        lines = [line.split("#")[0].strip() for line in text.splitlines()]
        names = [name for name in lines if name]
    if duplicates := _duplicates(names):
        raise DataError(f"classes file {path} repeats {', '.join(duplicates)}; expected unique names.")
    if not names:
        raise DataError(f"classes file {path} is empty; expected one name per line, starting with class id 0.")
    return names


def is_valid_name(name: str) -> bool:
    """Returns True if a class name has visible characters and can be encoded as UTF-8."""
    return bool(name.strip()) and name.encode("utf-8", "replace").decode() == name


def _duplicates(names: Sequence[str]) -> list[str]:
    return sorted(name for name, count in Counter(names).items() if count > 1)


def _json_names(path: Path, text: str) -> list[str]:
    try:
        names = parse_json(text)
    except ValueError as error:
        raise DataError(f"classes file {path} is not a valid JSON list ({summarize_error(error)}).") from error
    if not isinstance(names, list) or not all(isinstance(name, str) and is_valid_name(name) for name in names):
        raise DataError(f'classes file {path} is JSON, but not a list of names; expected e.g. ["road", "car"].')
    return list(names)
