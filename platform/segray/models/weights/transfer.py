"""HTTP transfer of one file of a hub: its stated length and hash, a resumable download, and the check of the result."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, OpenerDirector, Request, build_opener

TIMEOUT_S = 30
BLOCK_BYTES = 1 << 20
_SHA256, _GIT_SHA1 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")
_NOT_SATISFIABLE, _PARTIAL_CONTENT = 416, 206


class TransferError(Exception):
    """A download is incomplete or damaged."""


@dataclass(frozen=True)
class RemoteFile:
    """A file as the hub states it.

    Attributes:
        size: length in bytes; `None` if the hub does not state it.
        etag: identity of the content: the SHA-256 of a large file, the git hash of a small one, or any other text of a
            mirror; empty if the hub states none.
    """

    size: int | None
    etag: str

    @property
    def is_identified(self) -> bool:
        """Whether the content has an identity, without which no download can be continued."""
        return bool(self.etag)

    @property
    def tag(self) -> str:
        """Identity of the content as a part of a file name."""
        return hashlib.sha256(self.etag.encode()).hexdigest()[:16]

    def missing_from(self, partial: Path) -> bool:
        """Returns True if a partial file has less than the stated length."""
        return not partial.exists() or (self.size is not None and partial.stat().st_size < self.size)


class _Redirects(HTTPRedirectHandler):
    """Follows redirects, and passes the token on within one origin only. By default, urllib passes all headers on."""

    def __init__(self, *, leave_origin: bool) -> None:
        self._leave_origin = leave_origin

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        is_same_origin = urlsplit(newurl)[:2] == urlsplit(req.full_url)[:2]
        if not is_same_origin and not self._leave_origin:
            return None  # urllib raises the redirect as an error, which has its headers
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None:
            request.method = req.get_method()
            token = req.unredirected_hdrs.get("Authorization")
            if token and is_same_origin:
                request.add_unredirected_header("Authorization", token)
        return request


def read_metadata(url: str, token: str | None) -> RemoteFile:
    """Returns the length and the hash of a file, as the hub states them.

    Large files are stored elsewhere, and the hub states their length and hash in the redirect to that place.

    Raises:
        OSError: the hub does not answer, or has no such file (HTTPError).
    """
    try:
        with _opener(leave_origin=False).open(_request(url, token, "HEAD"), timeout=TIMEOUT_S) as response:
            headers = response.headers
            size = headers.get("X-Linked-Size") or headers.get("Content-Length")
    except HTTPError as error:
        if not 300 <= error.code < 400:
            raise
        headers = error.headers
        size = headers.get("X-Linked-Size")
    etag = headers.get("X-Linked-ETag") or headers.get("ETag") or ""
    return RemoteFile(None if size is None else int(size), etag.removeprefix("W/").strip('"'))


def append_to(partial: Path, url: str, token: str | None) -> None:
    """Appends the missing bytes of a file, or writes all of its bytes if the server cannot send a part.

    Raises:
        OSError, HTTPException: the connection fails; the bytes that arrived before are kept.
    """
    start = partial.stat().st_size if partial.exists() else 0
    request = _request(url, token, "GET")
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        response = _opener(leave_origin=True).open(request, timeout=TIMEOUT_S)
    except HTTPError as error:
        if error.code != _NOT_SATISFIABLE:
            raise
        partial.unlink()  # the file of the server is shorter than what was received
        return
    with response:
        is_continued = response.status == _PARTIAL_CONTENT and _range_start(response.headers) == start
        with partial.open("ab" if is_continued else "wb") as file:
            while block := response.read(BLOCK_BYTES):
                file.write(block)


def verify(partial: Path, remote: RemoteFile) -> None:
    """Compares the length and, if the hub states it, the hash. Removes a file that differs.

    Raises:
        TransferError: the length or the hash differs.
    """
    size = partial.stat().st_size
    if remote.size is not None and size != remote.size:
        partial.unlink()
        raise TransferError(f"{size} bytes arrived; the hub states {remote.size}; repeat the command")
    actual = _hash_as(remote.etag, partial)
    if actual is not None and actual != remote.etag:
        partial.unlink()
        raise TransferError(
            f"the hash of the received bytes is {actual}; the hub states {remote.etag}; repeat the command, or use "
            "another HF_ENDPOINT if the error persists"
        )


def _hash_as(etag: str, file: Path) -> str | None:
    """Returns the hash of a file, of the kind of an ETag; `None` if the ETag is no hash."""
    if _SHA256.fullmatch(etag):
        digest = hashlib.sha256()
    elif _GIT_SHA1.fullmatch(etag):
        digest = hashlib.sha1(f"blob {file.stat().st_size}\0".encode(), usedforsecurity=False)
    else:
        return None
    with file.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _range_start(headers: Any) -> int | None:
    match = re.match(r"bytes (\d+)-", headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _opener(*, leave_origin: bool) -> OpenerDirector:
    return build_opener(_Redirects(leave_origin=leave_origin))


def _request(url: str, token: str | None, method: str) -> Request:
    request = Request(url, method=method, headers={"User-Agent": "segray", "Accept-Encoding": "identity"})
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    return request
