"""Weights from the Hugging Face hub, cached in the user's cache folder.

A file gets its final name only after its length and its hash are those that the hub states. A download that is cut off
is continued, also by a later call.
"""

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError

from segray.core.errors import CheckpointError
from segray.models.weights.files import FOLDER_FILES
from segray.models.weights.transfer import RemoteFile, TransferError, append_to, read_metadata, verify

HUB_URL = "https://huggingface.co"
MAX_STALLED = 3
"""Number of consecutive requests without a new byte after which a download fails."""
NO_ACCESS, SERVER_ERRORS = (401, 403), 500
_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def is_hub_id(source: str) -> bool:
    """Returns True if a source has the form of a hub id, `owner/name`."""
    return _ID.fullmatch(source) is not None


def download(model_id: str) -> Path:
    """Returns the path of the weights file of a hub id. The file is downloaded once and cached.

    The hub URL is HF_ENDPOINT, by default huggingface.co. HF_TOKEN gives access to gated and private models and is sent
    to the hub alone. The cache folder is SEGRAY_CACHE, by default ~/.cache/segray.

    Raises:
        CheckpointError: the hub cannot be reached, has no such weights or permits no access to them, or the download
            is incomplete or damaged.
    """
    cache = Path(os.environ.get("SEGRAY_CACHE", Path.home() / ".cache" / "segray"))
    folder = cache / model_id.replace("/", "--")
    for name in FOLDER_FILES:
        if (folder / name).is_file():
            return folder / name
    hub = os.environ.get("HF_ENDPOINT", HUB_URL).rstrip("/")
    reasons = []
    for name in FOLDER_FILES:
        try:
            return _download(f"{hub}/{model_id}/resolve/main/{name}", folder / name)
        except HTTPError as error:
            if error.code in NO_ACCESS:
                raise CheckpointError(_describe_no_access(model_id, hub, error)) from error
            reasons.append(f"{name}: {error}")
        except (TransferError, HTTPException, OSError) as error:
            reasons.append(f"{name}: {error}")
    raise CheckpointError(
        f"weights {model_id} are not a local file and cannot be downloaded from {hub} ({'; '.join(reasons)}); "
        "expected a file, a folder, or a hub id that is available."
    )


def _describe_no_access(model_id: str, hub: str, error: HTTPError) -> str:
    fix = (
        f"accept its conditions at {hub}/{model_id} with the account of HF_TOKEN, or check that token"
        if os.environ.get("HF_TOKEN")
        else f"accept its conditions at {hub}/{model_id}, and set HF_TOKEN to a token of your account"
    )
    return (
        f"weights {model_id} cannot be downloaded from {hub} (HTTP status {error.code}); the model does not exist, or "
        f"it is gated or private; {fix}."
    )


def _download(url: str, target: Path) -> Path:
    """Downloads a file, and continues a previous download of the same content.

    Raises:
        TransferError: the file is incomplete or damaged.
        HTTPException, OSError: the hub does not answer, or the file cannot be written.
    """
    token = os.environ.get("HF_TOKEN")
    remote = read_metadata(url, token)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _lock(target):
        if not target.is_file():  # another process may have downloaded it meanwhile
            partial = target.with_name(f"{target.name}.{remote.tag}.partial")
            for other in target.parent.glob(f"{target.name}.*.partial"):  # of other content
                if other != partial or not remote.is_identified:
                    other.unlink()
            _complete(url, token, remote, partial)
            partial.replace(target)
    return target


def _complete(url: str, token: str | None, remote: RemoteFile, partial: Path) -> None:
    """Requests the missing part of a file until it is complete.

    Raises:
        TransferError: the file is still incomplete after several requests, or it is damaged and was removed.
    """
    if remote.size is None:  # the end of the transfer is the only sign that the file is complete
        partial.unlink(missing_ok=True)
        append_to(partial, url, token)
    stalled = 0
    while remote.missing_from(partial):
        size = partial.stat().st_size if partial.exists() else 0
        failure: Exception | None = None
        try:
            append_to(partial, url, token)
        except (HTTPException, OSError) as error:
            if isinstance(error, HTTPError) and error.code < SERVER_ERRORS:
                raise
            failure = error
        stalled = 0 if partial.exists() and partial.stat().st_size > size else stalled + 1
        if stalled == MAX_STALLED:
            raise TransferError(
                f"only {partial.stat().st_size if partial.exists() else 0} of {remote.size} bytes arrived"
                f"{f' ({failure})' if failure else ''}; the same command continues the download"
            ) from failure
    verify(partial, remote)


@contextmanager
def _lock(target: Path) -> Iterator[None]:
    """Locks the download of a file against other processes."""
    with target.parent.with_name(f".{target.parent.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
