"""Storage access for datasets: filesystems, content hashes, display names and atomic writes."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.fs
from pyarrow.fs import FileSystem, LocalFileSystem

from segray.config import paths
from segray.core.errors import DataError

UNFINISHED = ".unfinished"
"""Folder within the dataset root that marks an unfinished conversion and holds its state."""


def content_hash(*pieces: Any) -> str:
    """Computes a content hash of bytes or buffers; the length of each is hashed too, so that boundaries matter."""
    digest = hashlib.blake2b(digest_size=16)
    for piece in pieces:
        digest.update(len(piece).to_bytes(8, "little"))
        digest.update(piece)
    return digest.hexdigest()


@lru_cache(maxsize=16)  # reuses the client of a remote store and its connections
def filesystem(root: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """Returns the filesystem of a folder or URI (local, s3://, gs://) and the path of the folder on it.

    Credentials come from the environment. An alternative S3 endpoint comes from AWS_ENDPOINT_URL, unless the URI
    specifies one: `s3://bucket/folder?endpoint_override=http://127.0.0.1:9000`.

    Raises:
        DataError: the scheme of the URI is unknown.
    """
    try:
        if "://" in root:
            fs, path = pyarrow.fs.FileSystem.from_uri(root)
            return fs, path
        return pyarrow.fs.LocalFileSystem(), root.rstrip("/") or "/"
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{paths.redact(root)} cannot be opened: {paths.redact(str(error))}.") from error


def display_path(root: str, path: str) -> str:
    """Returns the location of a dataset file for messages, without the options and credentials of a URI."""
    return f"{strip_credentials(root)}/{path}"


def strip_credentials(root: str) -> str:
    """Returns a folder unchanged, or a URI without its options and credentials."""
    scheme, is_uri, rest = root.partition("://")
    return f"{scheme}://{rest.partition('?')[0].rpartition('@')[2]}" if is_uri else root


def credentials_hint(root: str) -> str:
    """Returns a hint for error messages that names the source of the store's credentials."""
    hints = {
        "s3": "credentials come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE or the machine's role; "
        "AWS_ENDPOINT_URL sets another endpoint; every node of the cluster needs them",
        "gs": "credentials come from GOOGLE_APPLICATION_CREDENTIALS or the machine's service account; every node of "
        "the cluster needs them",
    }
    scheme, is_uri, _ = root.partition("://")
    return f"; {hints[scheme]}." if is_uri and scheme in hints else "."


def one_line(error: Exception) -> str:
    """Returns the message of an error on one line."""
    return " ".join(str(error).split()).rstrip(".")


MAX_NAME_BYTES = 240  # leaves room for the suffix within the usual limit of 255


@contextmanager
def translate_write_errors(out: str) -> Iterator[None]:
    """Converts write errors of a store to a DataError that names the output.

    Raises:
        DataError: the output cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise DataError(
            f"output {strip_credentials(out)} cannot be written ({error}){credentials_hint(out)}"
        ) from error


_write_guards: dict[str, Callable[[], None]] = {}


@contextmanager
def guard_writes(root: str, check: Callable[[], None]) -> Iterator[None]:
    """Calls `check` before each `write_atomic` of this process below a folder. Its error prevents the write."""
    outer = _write_guards.get(root)
    _write_guards[root] = check
    try:
        yield
    finally:
        if outer is None:
            del _write_guards[root]
        else:
            _write_guards[root] = outer


def require_writable(path: str) -> None:
    """Calls the checks of `guard_writes` for a path, before a write or deletion other than `write_atomic`."""
    for root, check in list(_write_guards.items()):
        if f"{path}/".startswith(f"{root}/"):
            check()


def write_atomic(fs: FileSystem, path: str, content: bytes) -> None:
    """Writes a file atomically: it either exists completely or not at all."""
    require_writable(path)
    is_local = isinstance(fs, LocalFileSystem)
    partial = _partial_path(path) if is_local else path
    with fs.open_output_stream(partial) as file:
        file.write(content)
    if is_local:
        fs.move(partial, path)


def _partial_path(path: str) -> str:
    """Returns the temporary name of a file that is being written; a long name is hashed to stay within the limit."""
    folder, _, name = path.rpartition("/")
    return f"{folder}/{content_hash(name.encode()) if len(name.encode()) > MAX_NAME_BYTES else name}.partial"
