"""Ray Serve on the cluster of the test session: it follows the alias under load, and survives a replica failure."""

import asyncio
import base64
import json
import re
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from socket import create_server

import numpy as np
import pytest
import ray

from benchmarks.load_generator import LoadPlan, MaskChecker, apply_load
from segray.core.errors import ConfigError, ServingError
from segray.data.images import decode_image, decode_mask
from segray.data.sources import demo
from segray.serving.server import running_server

from . import browser
from .conftest import KNOWN, TOKEN, picture

BODIES = [picture(48, 80, 0), picture(48, 80, 1), picture(64, 64, 2)]


def get(url, path):
    request = urllib.request.Request(f"{url}{path}", headers={"Authorization": KNOWN["Authorization"]})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read()


def run_under_load(server, seconds, action):
    """The load of mixed sizes during an action, each mask compared with that of its version; the action's result."""
    info, store, _ = server
    masks = {(index, number): store.mask(number, body) for index, body in enumerate(BODIES) for number in ("1", "2")}
    plan = LoadPlan(f"{info.url}/v1/segment", [(body, KNOWN) for body in BODIES], 8, seconds)
    with ThreadPoolExecutor(1) as pool:
        load = pool.submit(apply_load, plan, MaskChecker(masks))
        result = action()
        return load.result(), result


def wait_for_version(info, version, seconds=20):
    async def wait():
        async with asyncio.timeout(seconds):
            while json.loads(get(info.url, "/v1/model"))["version"] != version:
                await asyncio.sleep(0.05)

    asyncio.run(wait())


def test_a_promotion_and_a_rollback_under_load_fail_no_request(server):
    info, store, _ = server

    def promote():
        for version in ("2", "1"):
            store.set("champion", version)
            wait_for_version(info, version)

    load, _ = run_under_load(server, 12, promote)
    assert not load.failed, load.failed[0]
    assert {sample.version for sample in load.samples} == {"1", "2"}
    assert load.samples[-1].version == "1"


def test_a_replica_that_is_killed_under_load_fails_no_request(server):
    info, _, _ = server

    def kill():
        time.sleep(2.0)  # until requests are in progress
        names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
        replicas = [name for name in names if "#replica#" in name]
        ray.kill(ray.get_actor(replicas[0], namespace="serve"))
        return replicas

    async def until(predicate, seconds):
        async with asyncio.timeout(seconds):
            while not predicate():
                await asyncio.sleep(0.2)

    def has_all_replicas():
        return json.loads(get(info.url, "/readyz"))["replicas"] == 2

    def has_retries():
        return re.search(rb"segray_retries_total [1-9]", get(info.url, "/metrics")) is not None

    for _ in range(4):  # on a fast machine, the killed replica may have no request in progress
        load, replicas = run_under_load(server, 6, kill)
        assert len(replicas) == 2
        assert not load.failed, load.failed[0]
        asyncio.run(until(has_all_replicas, 90))
        with suppress(TimeoutError):
            asyncio.run(until(has_retries, 5))
            break
    assert has_retries()


def test_the_server_listens_on_its_address_and_requires_the_token(server):
    info, _, settings = server
    assert info.url == f"http://127.0.0.1:{settings.serve.port}"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{info.url}/v1/model", timeout=10)
    assert json.loads(get(info.url, "/readyz"))["replicas"] >= 1


def test_a_second_server_is_refused_and_the_first_one_continues(server):
    info, _, settings = server
    with pytest.raises(ConfigError, match=f"serve.port {settings.serve.port}"), running_server(settings, print):
        pass
    with create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    other = settings.model_copy(update={"serve": settings.serve.model_copy(update={"port": port})})
    with pytest.raises(ServingError, match="Ray Serve is already running"), running_server(other, print):
        pass
    assert json.loads(get(info.url, "/readyz"))["ready"]


@pytest.mark.parametrize("token", ["short", "two words of some length", ""])
def test_an_invalid_token_file_is_refused(server, tmp_path, token):
    _, _, settings = server
    file = tmp_path / "token"
    file.write_text(token)
    serve = settings.serve.model_copy(update={"token_file": str(file)})
    with (
        pytest.raises(ConfigError, match="openssl"),
        running_server(settings.model_copy(update={"serve": serve}), print),
    ):
        pass


def test_the_masks_of_the_server_equal_the_predictors(server):
    info, store, _ = server
    for body in BODIES:
        request = urllib.request.Request(f"{info.url}/v1/segment", data=body, headers=KNOWN)
        with urllib.request.urlopen(request, timeout=20) as answer:
            assert np.array_equal(decode_mask(answer.read()), store.mask("1", body))


@pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium here; tests/debian-packages.sh installs it")
def test_the_page_segments_an_image_and_blends_the_mask(server, tmp_path):
    info, store, _ = server
    body = picture(96, 160, 5)
    (tmp_path / "street.jpg").write_bytes(body)
    pixels = "JSON.stringify([...document.querySelector('#canvas').getContext('2d').getImageData(0, 0, 160, 96).data])"

    async def visit():
        async with browser.tab(info.url) as page:
            await page.until(
                "document.readyState === 'complete' && document.querySelector('#token')?.style.display === 'block'"
            )
            await page.value(f"document.querySelector('#token input').value = '{TOKEN}'")
            await page.value("document.querySelector('#token').requestSubmit()")
            await page.until("document.querySelector('#model').textContent.includes('streets version 1')")
            await page.choose("#file", tmp_path / "street.jpg")
            await page.until("document.querySelector('#app').classList.contains('done')")
            opacities = {}
            for share in (0.0, 1.0):
                await page.press("#opacity", 0.002 + 0.996 * share)
                opacities[share] = (await page.value("+opacity.value"), json.loads(await page.value(pixels)))
            legend = await page.value("[...document.querySelectorAll('#legend li')].map(item => item.innerText)")
            timing = await page.value("document.querySelector('#timing').innerText")
            saved = await page.value("document.querySelector('#save').href")
            return opacities, legend, timing, saved, page.fetched, page.errors

    opacities, legend, timing, saved, fetched, errors = asyncio.run(visit())
    mask, classes = store.mask("1", body), demo.demo_classes()
    image, covered = (np.array(opacities[share][1], np.uint8).reshape(96, 160, 4)[..., :3] for share in (0.0, 1.0))
    assert [opacities[share][0] for share in (0.0, 1.0)] == [0, 100]
    assert np.array_equal(covered, np.array(classes.palette, np.uint8)[mask])
    assert np.abs(image.astype(int) - decode_image(body)).mean() < 4  # two decoders of JPEG
    assert sorted(line.splitlines()[0] for line in legend) == sorted(
        classes.names[class_id] for class_id in np.unique(mask)
    )
    assert "160 \u00d7 96" in timing
    assert "ms" in timing
    assert np.array_equal(decode_mask(base64.b64decode(saved.partition("base64,")[2])), mask)
    assert all(url.startswith((info.url, "data:", "blob:")) for url in fetched), fetched
    assert [error for error in errors if "401" not in str(error)] == []
