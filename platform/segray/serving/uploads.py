"""Images of a request: an image as the body, or a multipart form with several images."""

import asyncio
from collections.abc import Callable

from fastapi import Request
from starlette.requests import ClientDisconnect

from segray.config import ServeConfig
from segray.serving.forms import FORM_TYPE, split_form
from segray.serving.image_header import SIGNATURE_BYTES, HeaderError, require_known_format
from segray.serving.requests import CLIENT_CLOSED, IMAGE_TYPES, RequestError, header_rejection, validate_length


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
    content_type = request.headers.get("content-type", "")
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type not in {*IMAGE_TYPES, FORM_TYPE}:
        problem = f"unsupported Content-Type {media_type}" if media_type else "missing Content-Type"
        raise RequestError(f"{problem}; expected {', '.join([*IMAGE_TYPES, FORM_TYPE])}.", 415)
    is_form = media_type == FORM_TYPE
    body = await _read_body(request, limits, reserve, None if is_form else _validate_start)
    if not is_form:
        return [("image", body)]
    files = await asyncio.to_thread(split_form, content_type, body, limits.max_batch_images)
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
    except ClientDisconnect as error:
        raise RequestError(f"the client disconnected after {length} bytes of the body.", CLIENT_CLOSED) from error
    return b"".join(chunks)
