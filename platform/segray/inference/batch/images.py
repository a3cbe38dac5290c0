"""Image files of a folder or bucket."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pyarrow.fs import FileInfo, FileSelector, FileSystem, LocalFileSystem

from segray.core.errors import DataError, format_list, is_encodable
from segray.data.storage import content_hash, filesystem
from segray.inference.batch.inputs import Chunks, InputImage


def list_files(fs: FileSystem, root: str) -> list[FileInfo]:
    """Returns everything below a folder; links to folders are followed, each folder once."""
    if not isinstance(fs, LocalFileSystem):
        found: list[FileInfo] = fs.get_file_info(FileSelector(root, recursive=True))
        return found
    seen, paths = set[tuple[int, int]](), list[str]()
    for folder, folders, files in os.walk(root, followlinks=True):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        paths += [f"{folder}/{name}" for name in files]
    require_encodable(paths)
    listed: list[FileInfo] = fs.get_file_info(paths)
    return listed


def require_encodable(names: Sequence[str]) -> None:
    """Refuses names that cannot be written down.

    Raises:
        DataError: there is one; those are listed.
    """
    strange = [f"{name!a}" for name in names if not is_encodable(name)]
    if strange:
        raise DataError(f"{len(strange)} names are no UTF-8; rename them:{format_list(strange)}")


def result_names(paths: Sequence[str]) -> list[str]:
    """Returns the names of results: without suffix, but where two images differ in that alone."""
    bare = [str(PurePosixPath(path).with_suffix("")) for path in paths]
    count = Counter(bare)
    names = [path if count[name] > 1 else name for path, name in zip(paths, bare, strict=True)]
    return names if len(set(names)) == len(names) else list(paths)  # `a.jpg`, `a.png` and `a.jpg.png`


class ImageFile:
    """An image file as it was when it was listed."""

    def __init__(self, name: str, info: FileInfo) -> None:
        self.name, self.path = name, info.path
        self.version = f"{info.path} {info.size} {info.mtime_ns}"


@dataclass(frozen=True)
class ImageFiles:
    """Some image files of a folder or bucket: one part."""

    source: str
    files: tuple[ImageFile, ...]

    @property
    def version(self) -> str:
        """Changes with the files."""
        return content_hash(*(file.version.encode() for file in self.files))

    @property
    def images(self) -> int:
        """How many there are."""
        return len(self.files)

    @property
    def num_chunks(self) -> int:
        """One."""
        return 1

    @property
    def is_length_known(self) -> bool:
        """Yes."""
        return True

    def chunks(self, done: frozenset[int]) -> Chunks:
        """Yields the one part, if it is not done."""
        if 0 not in done:
            yield 0, [self._read(file) for file in self.files]

    def _read(self, file: ImageFile) -> InputImage:
        fs, _ = filesystem(self.source)
        try:
            with fs.open_input_stream(file.path) as stream:
                return InputImage(file.name, stream.read())
        except OSError as error:
            return InputImage(file.name, b"", f"{file.path} cannot be read ({error})")
