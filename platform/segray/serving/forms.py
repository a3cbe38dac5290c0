"""Splits a multipart form into its files, in a time that depends only on the size of the form.

A parser that examines each line of the body in Python takes seconds for a body with many of them, and no other Python
code runs meanwhile. This module searches the boundaries with `bytes.find`. RFC 2046 forbids lines in a part that start
with the boundary, so the first such line that ends no part is an error.
"""

from collections.abc import Iterator

from python_multipart.multipart import parse_options_header

from segray.serving.requests import RequestError

FORM_TYPE = "multipart/form-data"
MAX_FIELDS = 16
"""Maximum number of parts without a file."""
MAX_HEADER_BYTES = 4096
"""Maximum size of the header of a part, and of the Content-Type of a form."""
MAX_NAME_LENGTH = 100
"""Number of characters to which a file name is cut."""
WINDOW_BYTES = 2**20
"""Number of bytes that are searched at once. Other threads run between two windows."""


def split_form(content_type: str, body: bytes, max_files: int) -> list[tuple[str, bytes]]:
    """Returns the name and the content of each file of a multipart form.

    Args:
        content_type: value of the header Content-Type, which names the boundary.
        body: complete body.
        max_files: maximum number of files.

    Raises:
        RequestError: the form is incomplete or damaged (status 422), or has too many files (413).
    """
    boundary = _parse_options(content_type.encode("latin-1", "replace")).get(b"boundary")
    if not boundary:
        raise _form_error("its Content-Type names no boundary")
    files, num_fields = list[tuple[str, bytes]](), 0
    for header, content in _split_parts(body, b"\r\n--" + boundary):
        name = _file_name(header)
        if name is None:
            num_fields += 1
        else:
            files.append((name, content))
        if len(files) > max_files:
            raise RequestError(f"the form contains too many files; expected at most {max_files} files.", 413)
        if num_fields > MAX_FIELDS:
            raise _form_error(f"it has more than {MAX_FIELDS} fields without a file")
    return files


def _split_parts(body: bytes, delimiter: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields the header and the content of each part."""
    has_preamble = not body.startswith(delimiter[2:])
    start = (_find(body, delimiter, 0) if has_preamble else -2) + len(delimiter)
    while not body.startswith(b"--", start):
        header_end = body.find(b"\r\n\r\n", start, start + MAX_HEADER_BYTES)
        if header_end < 0 or not body.startswith(b"\r\n", start):
            raise _form_error(f"a boundary is not followed by a header of at most {MAX_HEADER_BYTES} bytes")
        end = _find(body, delimiter, header_end + 4)
        yield body[start + 2 : header_end], body[header_end + 4 : end]
        start = end + len(delimiter)


def _find(body: bytes, delimiter: bytes, start: int) -> int:
    """Returns the position of the next delimiter.

    Raises:
        RequestError: there is none.
    """
    for window in range(start, len(body), WINDOW_BYTES):
        position = body.find(delimiter, window, window + WINDOW_BYTES + len(delimiter) - 1)
        if position >= 0:
            return position
    raise _form_error("a boundary is missing")


def _file_name(header: bytes) -> str | None:
    """Returns the file name of a part, or `None` if the part is not a file."""
    for line in header.split(b"\r\n"):
        field, _, value = line.partition(b":")
        if field.strip().lower() == b"content-disposition":
            name = _parse_options(value.strip()).get(b"filename")
            return None if name is None else _decode_name(name)
    return None


def _parse_options(value: bytes) -> dict[bytes, bytes]:
    if len(value) > MAX_HEADER_BYTES:
        raise _form_error(f"its Content-Type has more than {MAX_HEADER_BYTES} bytes")
    return parse_options_header(value)[1]


def _decode_name(name: bytes) -> str:
    try:
        text = name.decode()
    except UnicodeDecodeError:
        text = name.decode("latin-1")
    return text[:MAX_NAME_LENGTH] or "image"


def _form_error(problem: str) -> RequestError:
    return RequestError(f"cannot parse the form ({problem}); expected a complete {FORM_TYPE} body.")
