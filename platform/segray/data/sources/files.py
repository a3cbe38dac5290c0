"""What sources made of files share: folders that must be there, pairs, lists, and files that must not change."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path

from segray.core.classes import Classes
from segray.core.errors import DataError, is_encodable
from segray.data.sources.sample import Encoded, SourceListing, SourceSample
from segray.data.storage import content_hash

MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")
USUAL_SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class SourceFile:
    """A file as it was when it was listed; it is read where the conversion runs, perhaps on another machine.

    Attributes:
        path: absolute.
        size: bytes.
        time: of its last change, ns.
    """

    path: str
    size: int
    time: int

    @classmethod
    def stat(cls, path: Path) -> "SourceFile":
        """Returns the file as it is now; OSError where there is none."""
        found = path.stat()
        return cls(str(path), found.st_size, found.st_mtime_ns)

    @property
    def version(self) -> str:
        """Changes with the file."""
        return f"{self.path} {self.size} {self.time}"

    def read(self) -> bytes:
        """Returns its bytes.

        Raises:
            DataError: it cannot be read, or is not the one that was listed.
        """
        try:
            with Path(self.path).open("rb") as file:
                found = os.fstat(file.fileno())
                content = file.read()
        except OSError as error:
            raise DataError(f"{self.path} cannot be read ({error.strerror}); expected an image file.") from error
        if (found.st_size, found.st_mtime_ns) != (self.size, self.time) or len(content) != self.size:
            raise DataError(f"{self.path} has changed since the conversion began; convert again.")
        return content


def require_source_dir(kind: str, source: str | None, layout: str) -> Path:
    """Returns the source's folder, absolute.

    Args:
        kind: the format, for the message.
        source: what --source says.
        layout: what the folder is to hold, for the message.

    Raises:
        DataError: none is named, or there is none.
    """
    if source is None:
        raise DataError(f"format {kind} needs --source DIR, a folder with {layout}.")
    root = Path(source).absolute()
    if root.exists() and not root.is_dir():
        raise DataError(f"source folder {root} is a file; expected a folder with {layout}.")
    if not root.is_dir():
        raise DataError(f"source folder {root} does not exist; expected one with {layout}.")
    return root


def require_path(path: Path, layout: str) -> Path:
    """Returns a path that has to exist.

    Raises:
        DataError: it does not; the message says what lies there instead, and what was expected.
    """
    if not path.exists():
        raise DataError(f"{path} is missing; {path.parent} holds {describe_dir(path.parent)}; expected {layout}.")
    return path


def describe_dir(folder: Path) -> str:
    """Returns the names in a folder, for people."""
    names = sorted(one.name for one in folder.iterdir()) if folder.is_dir() else []
    return ", ".join(names)[:200] or "nothing"


def read_lines(path: Path) -> list[str]:
    """Returns the lines of a text file that hold anything.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); expected a list, an entry a line.") from error


def is_junk_file(path: Path) -> bool:
    """Returns whether a file is hidden, or one that a file manager left."""
    return path.name.startswith(".") or path.name in {"Thumbs.db", "desktop.ini"}


MaskReader = Callable[[SourceFile], Callable[[], Encoded]]
"""Makes of a mask's file what returns the mask; a dataclass, so that shards are made anew where its fields change."""


@dataclass
class SampleCollector:
    """Samples, and what does not fit, both gathered to the end so that all of it is said at once.

    Attributes:
        root: of the source; a path that leaves it, through a link or by its name, is a problem.
        reading: of masks, where none is given for one; none takes the file's bytes.
        samples: in the order they were added.
        problems: a line each.
    """

    root: Path
    reading: MaskReader | None = None
    samples: list[SourceSample] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    _folders: dict[Path, Path] = field(default_factory=dict)

    def add(
        self,
        split: str,
        stem: str,
        image: Path,
        mask: Path,
        reading: MaskReader | None = None,
        mask_bytes: int | None = None,
        columns: Mapping[str, str] | None = None,
    ) -> None:
        """Adds a sample, or notes why not.

        Args:
            split: its split.
            stem: unique in the split.
            image: its image file.
            mask: the file its mask is made of.
            reading: of this mask, where it is one's own.
            mask_bytes: how much of its file the mask is, where that holds others too.
            columns: further facts by name.
        """
        files = [self._file(image, "image"), self._file(mask, "mask")]
        pixels, labels = files
        if pixels is None or labels is None:
            return
        reading = reading or self.reading
        read_mask = reading(labels) if reading else labels.read
        self.samples.append(
            SourceSample(
                split=split,
                id=f"{split}/{stem}",
                image=str(image),
                mask=str(mask),
                size_bytes=pixels.size + (labels.size if mask_bytes is None else mask_bytes),
                read_image=pixels.read,
                read_mask=read_mask,
                version=f"{pixels.version}\n{labels.version}\n{_version_of(read_mask)}",
                columns=columns or {},
            )
        )

    def _file(self, path: Path, what: str) -> SourceFile | None:
        if not is_encodable(str(path)):
            self.problems.append(f"{str(path)!a}: a name that is no UTF-8; rename it")
            return None
        try:
            if not self._is_inside(path):
                self.problems.append(f"{path}: leaves the source, to {path.resolve()}; copy the {what} into it")
            elif path.is_file():
                return SourceFile.stat(path)
            else:
                found = "a link to nothing" if path.is_symlink() else "missing"
                self.problems.append(f"{path}: {found}; expected the {what} there")
        except (OSError, RuntimeError, ValueError) as error:  # too long a name, links in a circle, a zero byte
            self.problems.append(
                f"{str(path)[:200]!r}: cannot be looked at ({type(error).__name__}); expected the {what}"
            )
        return None

    def _is_inside(self, path: Path) -> bool:
        """Returns whether a path stays in the source, links and `..` followed; a folder is followed once."""
        for folder in (self.root, path.parent):
            if folder not in self._folders:
                self._folders[folder] = folder.resolve()
        found = path.resolve() if path.is_symlink() else self._folders[path.parent]
        return found.is_relative_to(self._folders[self.root])

    def listing(
        self, classes: Classes | None, lookup: Mapping[int, int | None] | None = None, *, absent_ok: bool = False
    ) -> SourceListing:
        """Returns the samples and problems, with what the ids mean (see Found)."""
        return SourceListing(tuple(self.samples), classes, lookup, absent_ok, tuple(self.problems))


def _version_of(read_mask: Callable[[], Encoded]) -> str:
    """Returns what changes with all that a reader of masks holds, such as the order of its colours."""
    return content_hash(repr(read_mask).encode("utf-8", "surrogateescape")) if is_dataclass(read_mask) else ""


def by_stem(folder: Path, suffixes: Sequence[str], what: str, problems: list[str]) -> dict[str, Path]:
    """Returns a folder's files by their stem, in order of name.

    Args:
        folder: to look into; hidden files, and what Windows leaves behind, are left out.
        suffixes: of the files that are expected.
        what: they are, for the messages.
        problems: gains a line for each file that does not fit.
    """
    if not folder.is_dir():
        problems.append(f"{folder}: folder is missing; expected the split's files there")
        return {}
    found: dict[str, Path] = {}
    for path in sorted(path for path in folder.iterdir() if not is_junk_file(path)):
        if not is_encodable(path.name):
            problems.append(f"{folder}/{path.name!a}: a name that is no UTF-8; rename it")
        elif not path.exists():
            problems.append(f"{path}: a link to nothing; expected a file")
        elif path.is_dir() or path.suffix.lower() not in suffixes:
            problems.append(f"{path}: not {what}; expected only files ending in {' '.join(suffixes)}")
        elif path.stem in found:
            problems.append(f"{path}: {found[path.stem].name} has the same stem; expected one file a stem")
        else:
            found[path.stem] = path
    return found


def match_stems(
    images: dict[str, Path], masks: dict[str, Path], folders: tuple[Path, Path], problems: list[str], ending: str = ""
) -> list[str]:
    """Returns the stems that both have, in order.

    Args:
        images: by stem.
        masks: by stem.
        folders: of images and of masks, where a partner is expected.
        problems: gains a line for each stem that only one has.
        ending: what a mask's name has after the stem.
    """
    for stem in sorted(images.keys() - masks.keys()):
        problems.append(f"{images[stem]}: image without a mask; expected {folders[1] / stem}{ending}.png")
    for stem in sorted(masks.keys() - images.keys()):
        problems.append(f"{masks[stem]}: mask without an image; expected {folders[0] / stem}.jpg or .png")
    return sorted(images.keys() & masks.keys())


def sort_splits(splits: Iterable[str]) -> list[str]:
    """Returns split names: the usual three first and in this order, others by name."""
    names = set(splits)
    return [name for name in USUAL_SPLITS if name in names] + sorted(names - set(USUAL_SPLITS))
