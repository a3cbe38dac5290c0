"""Image files of a folder or bucket."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pyarrow.fs import FileInfo, FileSelector, FileSystem, LocalFileSystem

from segray.config.paths import is_uri
from segray.core.errors import DataError, format_list, is_encodable
from segray.data.normalize import IMAGE_SUFFIXES
from segray.data.storage import content_hash, credentials_hint, filesystem
from segray.inference.batch.inputs import Chunks, InputImage


def list_files(fs: FileSystem, root: str) -> list[FileInfo]:
    """Returns all files below a folder. Links to folders are followed, and each folder is visited once."""
    if not isinstance(fs, LocalFileSystem):
        infos: list[FileInfo] = fs.get_file_info(FileSelector(root, recursive=True))
        return infos
    visited, paths = set[tuple[int, int]](), list[str]()
    for folder, folders, files in os.walk(root, onerror=_raise_unreadable, followlinks=True):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        paths += [f"{folder}/{name}" for name in files]
    require_encodable(paths)
    return list(fs.get_file_info(paths))


def _raise_unreadable(error: OSError) -> None:
    raise DataError(f"folder {error.filename} cannot be read ({error.strerror}); expected a folder with images.")


def require_encodable(names: Sequence[str]) -> None:
    """Validates that all names can be encoded as UTF-8.

    Raises:
        DataError: a name cannot be encoded; the message lists all such names.
    """
    invalid = [f"{name!a}" for name in names if not is_encodable(name)]
    if invalid:
        raise DataError(f"{len(invalid)} file names are not valid UTF-8; rename the files:{format_list(invalid)}")


def result_names(paths: Sequence[str]) -> list[str]:
    """Returns the names of the results: the paths without the suffix of an image.

    Paths that differ only in their suffix keep it.
    """
    stems = [
        str(PurePosixPath(path).with_suffix("")) if PurePosixPath(path).suffix.lower() in IMAGE_SUFFIXES else path
        for path in paths
    ]
    counts = Counter(stems)
    names = [path if counts[stem] > 1 else stem for path, stem in zip(paths, stems, strict=True)]
    return names if len(set(names)) == len(names) else list(paths)  # `a.jpg`, `a.png` and `a.jpg.png`


class ImageFile:
    """An image file with its size and modification time at listing."""

    def __init__(self, name: str, info: FileInfo) -> None:
        self.name, self.path = name, info.path
        self.version = f"{info.path} {info.size} {info.mtime_ns}"


@dataclass(frozen=True)
class ImageFiles:
    """A shard of image files of a folder or bucket, with a single chunk."""

    source: str
    files: tuple[ImageFile, ...]

    @property
    def version(self) -> str:
        """Digest of the files."""
        return content_hash(*(file.version.encode() for file in self.files))

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.files)

    @property
    def num_chunks(self) -> int:
        """Number of chunks, always 1."""
        return 1

    @property
    def is_length_known(self) -> bool:
        """Whether the number of images is known, always True."""
        return True

    def chunks(self, done: frozenset[int]) -> Chunks:
        """Yields the single chunk, unless it is done.

        Raises:
            DataError: the store that contains the files cannot be read.
        """
        if 0 not in done:
            yield 0, [self._read(file) for file in self.files]

    def _read(self, file: ImageFile) -> InputImage:
        fs, _ = filesystem(self.source)
        try:
            with fs.open_input_stream(file.path) as stream:
                return InputImage(file.name, stream.read())
        except OSError as error:
            if not self._is_fault_of_file(error):
                raise DataError(  # the store fails, and would fail for every other image
                    f"{file.path} cannot be read ({error}){credentials_hint(self.source).rstrip('.')}; "
                    "the same command resumes the job."
                ) from error
            return InputImage(file.name, b"", f"{file.path} cannot be read ({error})")

    def _is_fault_of_file(self, error: OSError) -> bool:
        """Returns `True` if only this file is gone or forbidden, `False` if the store fails or is not mounted here."""
        if is_uri(self.source):
            return isinstance(error, FileNotFoundError)
        return isinstance(error, FileNotFoundError | PermissionError) and Path(self.source).exists()
