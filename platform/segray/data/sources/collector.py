"""Collection of the samples of a file-based source, and of the problems with their files."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path

from segray.core.classes import Classes
from segray.core.errors import is_encodable
from segray.data.sources.files import SourceFile
from segray.data.sources.sample import Encoded, SourceListing, SourceSample
from segray.data.storage import content_hash

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
