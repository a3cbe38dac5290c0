"""Hub ids: fetched once from a hub of the test's own, then read from the cache."""

from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch

from segray.core.errors import CheckpointError
from segray.models.segformer.model import build_segformer
from segray.models.weights.load import load_pretrained
from segray.models.weights.save import save_weights


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, ThreadingHTTPServer]]:
    """A hub that serves a folder, and an empty cache."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "hub"))
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("SEGRAY_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "hub", server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_hub_id_is_fetched_once(hub, tmp_path):
    folder, _ = hub
    model, other = build_segformer("b0", 3), build_segformer("b0", 3)
    save_weights(model, folder / "me" / "mine-b0" / "resolve" / "main", "transformers")
    assert load_pretrained(other, "me/mine-b0").layout == "transformers"
    assert torch.equal(other.head.fuse.weight, model.head.fuse.weight)
    (folder / "me" / "mine-b0" / "resolve" / "main" / "model.safetensors").unlink()
    load_pretrained(other, "me/mine-b0")
    assert [file.name for file in (tmp_path / "cache" / "me--mine-b0").iterdir()] == ["model.safetensors"]


def test_an_id_that_the_hub_does_not_have_is_refused(hub, tmp_path):
    with pytest.raises(
        CheckpointError, match=r"weights me/nothing are not a local file and cannot be downloaded from http://127"
    ):
        load_pretrained(build_segformer("b0", 3), "me/nothing")
    assert not (tmp_path / "cache").exists()


def test_a_hub_that_cannot_be_reached_is_named(hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CheckpointError, match=r"cannot be downloaded from http://127.0.0.1:9 .*expected a file"):
        load_pretrained(build_segformer("b0", 3), "me/mine")


def test_the_path_of_a_file_is_never_asked_of_the_hub(hub):
    with pytest.raises(CheckpointError, match=r"do not exist"):
        load_pretrained(build_segformer("b0", 3), "weights/mit_b0.pth")
