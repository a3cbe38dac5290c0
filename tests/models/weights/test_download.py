"""Downloads from real HTTP servers that cut off, send other bytes, redirect, or require a token."""

import hashlib
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from segray.core.errors import CheckpointError
from segray.models.weights.hub import download

CONTENT = np.random.default_rng(0).integers(0, 256, 100_000, np.uint8).tobytes()
SHA256 = hashlib.sha256(CONTENT).hexdigest()
GIT_SHA1 = hashlib.sha1(b"blob 100000\0" + CONTENT).hexdigest()
TOKEN = "hf_secret"


class Hub:
    """What a server sends, and the requests that it received.

    Attributes:
        content, etag: the only file and its ETag.
        sent: number of bytes after which the connection of each next request is closed; then whole answers.
        has_ranges, has_size: whether the server answers requests of a part, and states the length.
        token: token that is required; `None` requires none.
        moved_to: URL that each request is redirected to; `None` redirects no request.
    """

    def __init__(self):
        self.content, self.etag, self.sent, self.token, self.moved_to = CONTENT, SHA256, [], None, None
        self.has_ranges = self.has_size = True
        self.requests = []

    def start(self):
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, self))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def starts(self):
        return [headers.get("Range") for method, _, headers in self.requests if method == "GET"]


class Handler(BaseHTTPRequestHandler):
    def __init__(self, hub, *args):
        self.hub = hub
        super().__init__(*args)

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        hub, (status, first) = self.hub, (200, 0)
        hub.requests.append((self.command, self.path, dict(self.headers)))
        if not self.path.endswith("model.safetensors"):
            return self.send_error(404)
        if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
            return self.send_error(401)
        if hub.moved_to:
            return self.redirect()
        if hub.has_ranges and "Range" in self.headers:
            status, first = 206, int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            if first >= len(hub.content):
                return self.send_error(416)
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{len(hub.content) - 1}/{len(hub.content)}")
        if hub.has_size:
            self.send_header("Content-Length", str(len(hub.content) - first))
        if hub.etag:
            self.send_header("ETag", f'"{hub.etag}"')
        self.end_headers()
        if self.command == "GET":
            rest = hub.content[first:]
            self.wfile.write(rest[: hub.sent.pop(0)] if hub.sent else rest)
        return None

    def redirect(self):
        self.send_response(302)
        self.send_header("Location", self.hub.moved_to)
        self.send_header("X-Linked-Size", str(len(CONTENT)))
        self.send_header("X-Linked-ETag", f'"{SHA256}"')
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    server = Hub()
    server.start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("SEGRAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield server
    server.stop()


@pytest.fixture
def store():
    server = Hub()
    server.start()
    yield server
    server.stop()


def cached(tmp_path):
    folder: Path = tmp_path / "cache/me--mine"
    return sorted(file.name.split(".")[-1] for file in folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize("etag", [SHA256, GIT_SHA1, "mirror-7", ""], ids=["sha256", "git", "other", "none"])
def test_a_whole_file_is_kept_whatever_the_identity_of_its_content(hub, tmp_path, etag):
    hub.etag = etag
    assert download("me/mine").read_bytes() == CONTENT
    assert cached(tmp_path) == ["safetensors"]
    hub.stop()
    assert download("me/mine").read_bytes() == CONTENT
    hub.start()


def test_a_download_that_is_cut_off_is_continued(hub, tmp_path):
    hub.sent = [30_000, 0, 20_000]
    assert download("me/mine").read_bytes() == CONTENT
    assert hub.starts() == [None, "bytes=30000-", "bytes=30000-", "bytes=50000-"]
    assert cached(tmp_path) == ["safetensors"]


def test_a_server_without_ranges_sends_all_of_it_again(hub):
    hub.sent, hub.has_ranges = [30_000], False
    assert download("me/mine").read_bytes() == CONTENT
    assert hub.starts() == [None, "bytes=30000-"]


def test_a_download_that_is_never_completed_has_no_final_name_and_the_next_call_continues_it(hub, tmp_path):
    hub.sent = [30_000, 0, 0, 0]
    with pytest.raises(CheckpointError, match="only 30000 of 100000 bytes arrived.*same command continues"):
        download("me/mine")
    assert cached(tmp_path) == ["partial"]
    assert download("me/mine").read_bytes() == CONTENT
    assert hub.starts()[-1] == "bytes=30000-"
    assert cached(tmp_path) == ["safetensors"]


def test_what_was_received_of_other_content_is_not_continued(hub, tmp_path):
    hub.sent = [30_000, 0, 0, 0]
    with pytest.raises(CheckpointError):
        download("me/mine")
    hub.content = CONTENT[::-1]
    hub.etag = hashlib.sha256(hub.content).hexdigest()
    assert download("me/mine").read_bytes() == hub.content
    assert hub.starts()[-1] is None
    assert cached(tmp_path) == ["safetensors"]


@pytest.mark.parametrize("etag", [SHA256, GIT_SHA1])
def test_other_bytes_than_stated_are_refused_and_removed(hub, tmp_path, etag):
    hub.etag, hub.content = etag, CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    with pytest.raises(CheckpointError, match=f"the hash of the received bytes is .*; the hub states {etag}"):
        download("me/mine")
    assert cached(tmp_path) == []
    hub.content = CONTENT
    assert download("me/mine").read_bytes() == CONTENT


def test_a_transfer_without_a_stated_length_is_judged_by_its_hash(hub, tmp_path):
    hub.has_size, hub.sent = False, [30_000]
    with pytest.raises(CheckpointError, match="the hash of the received bytes is"):
        download("me/mine")
    assert cached(tmp_path) == []
    assert download("me/mine").read_bytes() == CONTENT


def test_the_hash_of_the_redirect_counts_and_the_token_stays_with_the_hub(hub, store, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.token, hub.moved_to, store.etag = TOKEN, f"{store.url}/blob/model.safetensors", "other"
    assert download("me/mine").read_bytes() == CONTENT
    assert all(headers.get("Authorization") == f"Bearer {TOKEN}" for _, _, headers in hub.requests)
    assert [method for method, _, _ in store.requests] == ["GET"]
    assert all("Authorization" not in headers for _, _, headers in store.requests)


def test_a_store_that_sends_other_bytes_than_the_hub_states_is_refused(hub, store, tmp_path):
    store.content = CONTENT[::-1]
    hub.moved_to, store.etag = f"{store.url}/blob/model.safetensors", hashlib.sha256(store.content).hexdigest()
    with pytest.raises(CheckpointError, match="the hash of the received bytes is"):
        download("me/mine")
    assert cached(tmp_path) == []


def test_a_model_that_moved_within_the_hub_still_gets_the_token(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.token = TOKEN
    answer = Handler.answer

    def move_once(handler):
        if "/old/" not in handler.path:
            return answer(handler)
        handler.send_response(307)
        handler.send_header("Location", handler.path.replace("/old/", "/me/"))
        handler.send_header("Content-Length", "0")
        return handler.end_headers()

    monkeypatch.setattr(Handler, "answer", move_once)
    assert download("old/mine").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("token", "fix"), [(None, "set HF_TOKEN to a token of your account"), ("hf_other", "or check that token")]
)
def test_a_gated_model_names_the_token(hub, tmp_path, monkeypatch, token, fix):
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    hub.token = TOKEN
    with pytest.raises(CheckpointError, match=rf"HTTP status 401.*gated or private.*{fix}") as refused:
        download("me/mine")
    assert "hf_other" not in str(refused.value)
    assert not (tmp_path / "cache").exists()
