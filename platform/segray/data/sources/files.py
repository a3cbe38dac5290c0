"""Helpers for file-based sources: required folders, file pairs, lists, and files that must not change."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path

from pydantic import ValidationError

from segray.core.classes import Classes, Colour, default_palette
from segray.core.errors import DataError, is_encodable
from segray.core.parsing import summarize_error
from segray.data.sources.sample import Encoded, SourceListing, SourceSample
from segray.data.storage import content_hash

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
    """Returns `True` for hidden files and files that file managers create."""
    return path.name.startswith(".") or path.name in {"Thumbs.db", "desktop.ini"}


MaskReader = Callable[[SourceFile], Callable[[], Encoded]]
"""Factory that takes a mask file and returns its mask reader.

The reader is a dataclass, so that a change of its fields invalidates shards of an earlier attempt.
"""


@dataclass
class SampleCollector:
    """Collects samples and problems, so that all problems are reported together.

    Attributes:
        root: root of the source. A path that leaves it, through a link or by name, is a problem.
        mask_reader: default mask reader factory; defaults to `None`, which uses the bytes of the file.
        samples: samples in the order in which they were added.
        problems: one line per problem.
    """

    root: Path
    mask_reader: MaskReader | None = None
    samples: list[SourceSample] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    _folders: dict[Path, Path] = field(default_factory=dict)

    def add(
        self,
        split: str,
        stem: str,
        image: Path,
        mask: Path,
        mask_reader: MaskReader | None = None,
        mask_bytes: int | None = None,
        columns: Mapping[str, str] | None = None,
    ) -> None:
        """Adds a sample, or records why it cannot be used.

        Args:
            split: split of the sample.
            stem: name that is unique within the split.
            image: image file.
            mask: file from which the mask is made.
            mask_reader: mask reader factory for this mask, or `None` for the default of the collector.
            mask_bytes: size of the mask in bytes, if the file holds other masks too; `None` uses the file size.
            columns: additional columns by name.
        """
        image_file, mask_file = self._file(image, "image"), self._file(mask, "mask")
        if image_file is None or mask_file is None:
            return
        mask_reader = mask_reader or self.mask_reader
        read_mask = mask_reader(mask_file) if mask_reader else mask_file.read
        self.samples.append(
            SourceSample(
                split=split,
                id=f"{split}/{stem}",
                image=str(image),
                mask=str(mask),
                size_bytes=image_file.size + (mask_file.size if mask_bytes is None else mask_bytes),
                read_image=image_file.read,
                read_mask=read_mask,
                version=f"{image_file.version}\n{mask_file.version}\n{_version_of(read_mask)}",
                columns=columns or {},
            )
        )

    def _file(self, path: Path, role: str) -> SourceFile | None:
        if not is_encodable(str(path)):
            self.problems.append(f"{str(path)!a}: the name is not valid UTF-8; rename it")
            return None
        try:
            if not self._is_inside(path):
                self.problems.append(f"{path}: outside the source ({path.resolve()}); copy the {role} into it")
            elif path.is_file():
                return SourceFile.stat(path)
            else:
                reason = "broken link" if path.is_symlink() else "missing"
                self.problems.append(f"{path}: {reason}; expected the {role} there")
        except (OSError, RuntimeError, ValueError) as error:  # name too long, cyclic links, or a null byte in the name
            self.problems.append(
                f"{str(path)[:200]!r}: cannot be accessed ({type(error).__name__}); expected the {role}"
            )
        return None

    def _is_inside(self, path: Path) -> bool:
        """Returns `True` if a path stays inside the source after links and `..` are resolved; folders are cached."""
        for folder in (self.root, path.parent):
            if folder not in self._folders:
                self._folders[folder] = folder.resolve()
        resolved = path.resolve() if path.is_symlink() else self._folders[path.parent]
        return resolved.is_relative_to(self._folders[self.root])

    def listing(
        self, classes: Classes | None, lookup: Mapping[int, int | None] | None = None, *, absent_ok: bool = False
    ) -> SourceListing:
        """Returns the listing of the samples and problems; the arguments are those of `SourceListing`."""
        return SourceListing(tuple(self.samples), classes, lookup, absent_ok, tuple(self.problems))


def _version_of(read_mask: Callable[[], Encoded]) -> str:
    """Returns text that changes with the fields of a mask reader, such as the order of its colours."""
    return content_hash(repr(read_mask).encode("utf-8", "surrogateescape")) if is_dataclass(read_mask) else ""


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
