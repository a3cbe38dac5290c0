"""Forms are split into their files in bounded time, like the parser of Starlette splits valid ones."""

import asyncio
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartParser
from starlette.requests import Request

from segray.config import ServeConfig
from segray.serving import forms
from segray.serving.requests import RequestError
from segray.serving.uploads import read_images

MAX_FILES = 4
HEAD = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
SIZE = 20 * 2**20 - 1000


def read(body, content_type="multipart/form-data; boundary=b", max_files=MAX_FILES):
    """The images that the server reads from a body."""

    async def receive():
        return {"type": "http.request", "body": body}

    scope = {"type": "http", "method": "POST", "headers": [(b"content-type", content_type.encode())]}
    limits = ServeConfig(max_batch_images=max_files)
    return asyncio.run(read_images(Request(scope, receive), limits, lambda _: None))


def read_with_starlette(body, content_type):
    """The files that the parser of Starlette reads from a form."""

    async def run():
        async def stream():
            yield body

        form = await MultiPartParser(Headers({"content-type": content_type}), stream()).parse()
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        return [(file.filename or "image", await file.read()) for file in files]

    return asyncio.run(run())


HOSTILE = {
    "almost boundaries": HEAD + b"\r\n--b\r" * (SIZE // 6),
    "empty parts": b"--b\r\n\r\n\r\n" + b"--b\r\n\r\n\r\n" * (SIZE // 9),
    "boundaries": b"--b\r\n" * (SIZE // 5),
    "headers": b"--b\r\n" + b"X: y\r\n" * (SIZE // 6),
    "parameters": (b"--b\r\nContent-Disposition: form-data" + b";" * (SIZE // 4) + b"\r\n\r\n\r\n") * 4 + b"--b--\r\n",
    "no boundary": b"\r\n--" * (SIZE // 4),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_form_is_refused_in_bounded_time(case):
    started_at = time.process_time()
    with pytest.raises(RequestError, match="cannot parse the form"):
        read(HOSTILE[case])
    assert time.process_time() - started_at < 1.0


@given(st.text("ab", max_size=40), st.text("ab", min_size=1, max_size=6), st.integers(0, 40), st.integers(1, 8))
def test_a_search_in_windows_finds_what_one_search_finds(body, delimiter, start, window):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forms, "WINDOW_BYTES", window)
        expected = body.find(delimiter, start)
        if expected < 0:
            with pytest.raises(RequestError, match="a boundary is missing"):
                forms._find(body.encode(), delimiter.encode(), start)
        else:
            assert forms._find(body.encode(), delimiter.encode(), start) == expected


TOKENS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789'()+_,-./:=?"


@st.composite
def valid_forms(draw):
    """A content type, and a form with at most `MAX_FILES` files."""
    boundary = draw(st.text(TOKENS, min_size=1, max_size=70))
    delimiter = b"--" + boundary.encode()
    names = st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters='"\\;'), min_size=1, max_size=99)
    contents = st.one_of(st.binary(max_size=200), st.text("\r\n-b", max_size=50).map(str.encode))
    body = draw(st.sampled_from([b"", b"\r\n"]))
    num_files = draw(st.integers(0, MAX_FILES))
    for is_file in draw(st.permutations([True] * num_files + [False] * draw(st.integers(0, MAX_FILES)))):
        content = draw(contents.filter(lambda content: b"\r\n" + delimiter not in b"\r\n" + content + b"\r\n"))
        name = f'; filename="{draw(names)}"' if is_file else ""
        lines = [f'Content-Disposition: form-data; name="images"{name}', "Content-Type: image/jpeg"]
        header = "\r\n".join(draw(st.permutations(lines))).encode()
        body += delimiter + b"\r\n" + header + b"\r\n\r\n" + content + b"\r\n"
    body += delimiter + b"--" + draw(st.sampled_from([b"", b"\r\n", b"\r\nan epilogue"]))
    return f'multipart/form-data; boundary="{boundary}"', body, num_files


@settings(max_examples=100, deadline=None)
@given(valid_forms())
def test_the_files_of_a_valid_form_are_those_that_starlette_reads(form):
    content_type, body, num_files = form
    expected = read_with_starlette(body, content_type)
    assert len(expected) == num_files
    if num_files:
        assert read(body, content_type) == expected
    else:
        with pytest.raises(RequestError, match="no file"):
            read(body, content_type)


@pytest.mark.parametrize(
    ("body", "reason", "status"),
    [
        (b"", "cannot parse the form", 422),
        (b"a preamble", "cannot parse the form", 422),
        (HEAD, "cannot parse the form", 422),
        (HEAD + b"content", "cannot parse the form", 422),
        (HEAD + b"content\r\n--b", "cannot parse the form", 422),
        (HEAD + b"content\r\n--b\r", "cannot parse the form", 422),
        (HEAD[:-4], "cannot parse the form", 422),
        (b"--b--\r\n", "no file", 422),
        ((HEAD + b"x\r\n") * (MAX_FILES + 1) + b"--b--", f"expected at most {MAX_FILES} files", 413),
        (b'--b\r\nContent-Disposition: form-data; name="n"\r\n\r\nx\r\n' * 1000 + b"--b--", "cannot parse", 422),
    ],
)
def test_an_incomplete_or_too_long_form_is_refused(body, reason, status):
    with pytest.raises(RequestError, match=reason) as refused:
        read(body)
    assert refused.value.status == status
