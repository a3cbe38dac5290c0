"""Helpers for file-based sources: required folders, file pairs, lists, and files that must not change."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from pydantic import ValidationError

from segray.core.classes import Classes, Colour, default_palette
from segray.core.errors import DataError, is_encodable
from segray.core.parsing import summarize_error

MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")
USUAL_SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class SourceFile:
    """A file and its state at listing time; the conversion reads it later, possibly on another node.

    Attributes:
        path: absolute path.
        size: size in bytes.
        time: modification time in ns.
    """

    path: str
    size: int
    time: int

    @classmethod
    def stat(cls, path: Path) -> "SourceFile":
        """Returns the current state of a file; raises OSError if it does not exist."""
        status = path.stat()
        return cls(str(path), status.st_size, status.st_mtime_ns)

    @property
    def version(self) -> str:
        """Version text that changes when the file changes."""
        return f"{self.path} {self.size} {self.time}"

    def read(self) -> bytes:
        """Reads the bytes of the file.

        Raises:
            DataError: the file cannot be read, or has changed since it was listed.
        """
        try:
            with Path(self.path).open("rb") as file:
                status = os.fstat(file.fileno())
                content = file.read()
        except OSError as error:
            raise DataError(f"{self.path} cannot be read ({error.strerror}); expected an image file.") from error
        if (status.st_size, status.st_mtime_ns) != (self.size, self.time) or len(content) != self.size:
            raise DataError(f"{self.path} has changed since the conversion started; convert again.")
        return content


def require_source_dir(kind: str, source: str | None, layout: str) -> Path:
    """Returns the absolute path of the source folder.

    Args:
        kind: name of the format, for the message.
        source: value of --source.
        layout: expected contents of the folder, for the message.

    Raises:
        DataError: no folder is given, or it does not exist.
    """
    if source is None:
        raise DataError(f"format {kind} requires --source DIR, a folder with {layout}.")
    root = Path(source).absolute()
    if root.exists() and not root.is_dir():
        raise DataError(f"source folder {root} is a file; expected a folder with {layout}.")
    if not root.is_dir():
        raise DataError(f"source folder {root} does not exist; expected a folder with {layout}.")
    return root


def require_path(path: Path, layout: str) -> Path:
    """Returns a path that must exist.

    Raises:
        DataError: the path does not exist; the message lists the existing files and the expected layout.
    """
    if not path.exists():
        raise DataError(f"{path} is missing; {path.parent} contains {describe_dir(path.parent)}; expected {layout}.")
    return path


def describe_dir(folder: Path) -> str:
    """Returns the names in a folder as text for messages."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return " ".join(", ".join(names)[:200].splitlines()) or "nothing"


def require_regular_file(path: Path) -> Path:
    """Returns the path of a regular file, or of a link to one.

    Raises:
        DataError: the path is a folder, a pipe or a device. Reading a pipe or a device may never end.
    """
    if not path.is_file():
        raise DataError(f"{path} is not a regular file; expected a file with data.")
    return path


def require_source_file(root: Path, path: Path) -> Path:
    """Returns the path of a file that the source itself describes its samples with.

    Raises:
        DataError: the path is not a regular file, or a link leads out of the source.
    """
    if not require_regular_file(path).resolve().is_relative_to(root.resolve()):
        raise DataError(f"{path} is a link to {path.resolve()}, outside the source; copy the file into the source.")
    return path


def read_source_file(root: Path, path: Path) -> bytes:
    """Reads a file that the source describes its samples with.

    Raises:
        DataError: the file cannot be read, is not a regular file, or lies outside the source.
    """
    try:
        return require_source_file(root, path).read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); expected a file with data.") from error


def read_lines(path: Path, root: Path | None = None) -> list[str]:
    """Reads the non-empty lines of a text file of a source.

    Args:
        path: text file.
        root: source that contains the file; defaults to the folder of the file.

    Raises:
        DataError: the file cannot be read, is not a regular file, or lies outside the source.
    """
    try:
        text = read_source_file(path.parent if root is None else root, path).decode("utf-8-sig")
        return [line.strip() for line in text.splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} cannot be read ({error}); expected one entry per line.") from error


def build_classes(origin: Path, names: Sequence[str], palette: Sequence[Colour] | None = None) -> Classes:
    """Builds the classes of a source.

    Args:
        origin: file or folder that the names come from, for the message.
        names: class names in the order of their ids.
        palette: colours of the classes; defaults to the default palette.

    Raises:
        DataError: there is no name, or a name is empty or occurs twice.
    """
    try:
        return Classes(names=tuple(names), palette=tuple(default_palette(len(names)) if palette is None else palette))
    except ValidationError as error:
        raise DataError(f"{origin} has invalid class names ({summarize_error(error)}).") from error


def is_junk_file(path: Path) -> bool:
    """Returns `True` for hidden files and files that file managers and file systems create."""
    return path.name.startswith(".") or path.name in {"Thumbs.db", "desktop.ini", "lost+found"}


def glob_files(root: Path, pattern: str) -> list[Path]:
    """Returns the paths below a folder that match a pattern, in order, without hidden files.

    `Path.glob` leaves out folders that cannot be read, and thus their samples.

    Raises:
        DataError: a folder cannot be read.
    """
    *parents, name = pattern.split("/")
    folders = [root]
    for parent in parents:
        folders = [path for folder in folders for path in _list_dir(folder, parent) if path.is_dir()]
    return sorted(path for folder in folders for path in _list_dir(folder, name))


def _list_dir(folder: Path, pattern: str) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            paths = [folder / entry.name for entry in entries if fnmatchcase(entry.name, pattern)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise DataError(f"folder {folder} cannot be read ({error.strerror}); expected a folder with data.") from error
    return [path for path in paths if not is_junk_file(path)]


def by_stem(folder: Path, suffixes: Sequence[str], kind: str, problems: list[str]) -> dict[str, Path]:
    """Returns the files of a folder by their stem, ordered by name.

    Args:
        folder: folder to list. Hidden files and files that file managers create are skipped.
        suffixes: allowed suffixes.
        kind: kind of file, for the messages.
        problems: list to which a line is added for each unexpected file.
    """
    if not folder.is_dir():
        problems.append(f"{folder}: missing folder; expected the files of the split")
        return {}
    files: dict[str, Path] = {}
    for path in sorted(path for path in folder.iterdir() if not is_junk_file(path)):
        if not is_encodable(path.name):
            problems.append(f"{folder}/{path.name!a}: the name is not valid UTF-8; rename it")
        elif not path.exists():
            problems.append(f"{path}: broken link; expected a file")
        elif path.is_dir() or path.suffix.lower() not in suffixes:
            problems.append(f"{path}: not {kind}; expected only files that end in {' '.join(suffixes)}")
        elif path.stem in files:
            problems.append(f"{path}: {files[path.stem].name} has the same stem; expected one file per stem")
        else:
            files[path.stem] = path
    return files


def match_stems(
    images: dict[str, Path],
    masks: dict[str, Path],
    folders: tuple[Path, Path],
    problems: list[str],
    mask_suffix: str = "",
) -> list[str]:
    """Returns the stems that occur in both, in order.

    Args:
        images: image files by stem.
        masks: mask files by stem.
        folders: image folder and mask folder, used in messages about missing partners.
        problems: list to which a line is added for each stem without a partner.
        mask_suffix: suffix that follows the stem in mask names.
    """
    for stem in sorted(images.keys() - masks.keys()):
        problems.append(f"{images[stem]}: image without a mask; expected {folders[1] / stem}{mask_suffix}.png")
    for stem in sorted(masks.keys() - images.keys()):
        problems.append(f"{masks[stem]}: mask without an image; expected {folders[0] / stem}.jpg or .png")
    return sorted(images.keys() & masks.keys())


def sort_splits(splits: Iterable[str]) -> list[str]:
    """Sorts split names: train, val and test first in this order, then the others by name."""
    names = set(splits)
    return [name for name in USUAL_SPLITS if name in names] + sorted(names - set(USUAL_SPLITS))
