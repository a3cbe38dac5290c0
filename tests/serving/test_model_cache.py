"""The model cache fetches each version once, and again if it is incomplete or recreated."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from segray.core.errors import RegistryError
from segray.models import checkpoint
from segray.serving import model_cache
from segray.serving.model_cache import ModelCache

from .conftest import MODEL, Store, weights_file


def test_a_recreated_version_number_is_fetched_again(tmp_path, empty_store):
    store = Store(tmp_path / "store", empty_store)
    store.add(0)
    cache = ModelCache(MODEL, store.uri, tmp_path / "served")
    first = cache.get("1")
    store.client.delete_registered_model(MODEL)
    assert store.add(5) == "1"
    assert first.files[checkpoint.WEIGHTS] != cache.get("1").files[checkpoint.WEIGHTS]


def test_a_tag_does_not_cause_a_download_and_requests_may_be_concurrent(store, monkeypatch):
    cache = ModelCache(MODEL, store.uri, store.folder / "served")
    cache.get("1")
    store.client.set_model_version_tag(MODEL, "1", "note", str(time.time()))
    with ThreadPoolExecutor(4) as pool:
        monkeypatch.setattr(model_cache, "download_checkpoint", lambda *_: pytest.fail("fetched again"))
        versions = list(pool.map(cache.get, ["1"] * 4))
    assert all(version.files == versions[0].files for version in versions)
    assert "note" in versions[0].tags


def test_a_cached_version_does_not_wait_for_the_download_of_another(store, monkeypatch):
    cache = ModelCache(MODEL, store.uri, store.folder / "served")
    cache.get("1")
    started, proceed, download = threading.Event(), threading.Event(), model_cache.download_checkpoint

    def slow_download(*args):
        started.set()
        proceed.wait(20)
        return download(*args)

    monkeypatch.setattr(model_cache, "download_checkpoint", slow_download)
    with ThreadPoolExecutor(2) as pool:
        downloading = pool.submit(cache.get, "2")
        assert started.wait(10)
        try:
            assert pool.submit(cache.get, "1").result(timeout=5).number == "1"
            cache.evict_except({"1", "2"})  # spares the download in progress
        finally:
            proceed.set()
        assert downloading.result().number == "2"


def test_an_interrupted_download_is_evicted_with_its_version(store):
    cache = ModelCache(MODEL, store.uri, store.folder / "served")
    cache.get("1")
    (folder,) = (store.folder / "served").iterdir()
    (folder / ".2-interrupted" / "2").mkdir(parents=True)
    cache.evict_except({"1"})
    assert [file.name for file in folder.iterdir()] == ["1"]


def test_a_version_with_an_attached_file_is_refused(store):
    number = store.add(5)
    weights_file(store, number).with_name("model.onnx").write_bytes(b"onnx")
    with pytest.raises(RegistryError, match=r"model\.onnx"):
        ModelCache(MODEL, store.uri, store.folder / "served").get(number)


@pytest.mark.parametrize("part", [checkpoint.CONFIG, checkpoint.WEIGHTS])
def test_an_incomplete_cached_version_is_fetched_again(store, part):
    cache = ModelCache(MODEL, store.uri, store.folder / "served")
    first = cache.get("1")
    next((store.folder / "served").rglob(part)).unlink()
    assert cache.get("1").files == first.files
