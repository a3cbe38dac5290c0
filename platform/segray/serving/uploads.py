"""Images of a request: an image as the body, or a multipart form with several images."""

import asyncio
from collections.abc import AsyncIterator, Callable

from fastapi import Request
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from segray.config import ServeConfig
from segray.serving.image_header import SIGNATURE_BYTES, HeaderError, require_known_format
from segray.serving.requests import IMAGE_TYPES, RequestError, header_rejection, validate_length

MULTIPART = "multipart/form-data"


async def read_images(request: Request, limits: ServeConfig, reserve: Callable[[int], None]) -> list[tuple[str, bytes]]:
    """Returns the name and the content of each image of a request.

    Args:
        request: HTTP request.
        limits: serving configuration.
        reserve: function that reserves memory for received bytes.

    Raises:
        RequestError: the request has no image, too many images, a body that is too large or too slow, or another media
            type.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in {*IMAGE_TYPES, MULTIPART}:
        problem = f"unsupported Content-Type {media_type}" if media_type else "missing Content-Type"
        raise RequestError(f"{problem}; expected {', '.join([*IMAGE_TYPES, MULTIPART])}.", 415)
    is_form = media_type == MULTIPART
    body = await _read_body(request, limits, reserve, None if is_form else _validate_start)
    if not is_form:
        return [("image", body)]
    # The parser is written in Python, and a body may contain many boundaries.
    files = await asyncio.to_thread(asyncio.run, _parse_form(request.headers, body, limits.max_batch_images))
    if not files:
        raise RequestError("the form contains no file; expected one or more image files.")
    return files


def _validate_start(start: bytes) -> None:
    """Rejects the start of a body that is not an image, before the rest arrives."""
    try:
        require_known_format(start)
    except HeaderError as error:
        raise header_rejection(error, "the image") from error


async def _read_body(
    request: Request,
    limits: ServeConfig,
    reserve: Callable[[int], None],
    validate_start: Callable[[bytes], None] | None,
) -> bytes:
    """Returns the request body. Reading stops at the size limit and at the time limit."""
    content_length = request.headers.get("content-length", "")
    if content_length.isdigit():
        validate_length(int(content_length), limits)
    chunks, length = list[bytes](), 0
    try:
        async with asyncio.timeout(limits.transfer_timeout_s):
            async for chunk in request.stream():
                length += len(chunk)
                validate_length(length, limits)
                reserve(len(chunk))
                chunks.append(chunk)
                if validate_start is not None and length >= SIGNATURE_BYTES:
                    validate_start(b"".join(chunks))
                    validate_start = None
    except TimeoutError as error:
        raise RequestError(
            f"{length} bytes of the request body arrived in serve.transfer_timeout_s {limits.transfer_timeout_s:g} s; "
            "expected the complete body; send a smaller image, or use a faster connection.",
            408,
        ) from error
    return b"".join(chunks)


async def _parse_form(headers: Headers, body: bytes, max_files: int) -> list[tuple[str, bytes]]:
    """Returns the name and the content of each file of a multipart form."""

    async def stream() -> AsyncIterator[bytes]:
        yield body

    try:
        parser = MultiPartParser(headers, stream(), max_files=max_files, max_fields=max_files)  # type: ignore[arg-type]
        form = await parser.parse()
    except MultiPartException as error:
        is_too_many = error.message.startswith("Too many files")
        expected = f"expected at most {max_files} files" if is_too_many else f"expected a complete {MULTIPART} body"
        status = 413 if is_too_many else 422
        raise RequestError(f"cannot parse the form ({error.message}); {expected}.", status) from error
    except Exception as error:  # the parser raises many exception types on damaged headers
        raise RequestError(f"cannot parse the form; expected a valid {MULTIPART} body.") from error
    try:
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        return [(_sanitize_name(file.filename or "image"), await file.read()) for file in files]
    finally:
        await form.close()


def _sanitize_name(name: str) -> str:
    """Returns a file name as valid UTF-8 of at most 100 characters, because a form may declare any charset."""
    return name.encode("utf-8", "replace").decode()[:100]
