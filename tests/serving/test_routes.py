"""Requests over HTTP: what is answered, and how what cannot be is refused."""

import asyncio
import base64
import io
from zlib import crc32

import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from ray.exceptions import RayError

from segray.data.images import decode_image, decode_mask

from .conftest import TOKEN, picture, served

JPEG = {"Content-Type": "image/jpeg"}


def asked(store, ask, **settings):
    """What `ask(found)` returns, of all that answers."""

    async def run():
        async with served(store, **settings) as found:
            return await ask(found)

    return asyncio.run(run())


@pytest.mark.parametrize(("kind", "media"), [("JPEG", "image/jpeg"), ("PNG", "image/png"), ("WEBP", "image/webp")])
def test_the_mask_is_the_predictors(store, kind, media):
    body = picture(kind=kind)
    found = asked(store, lambda it: it.client.post("/v1/segment", content=body, headers={"Content-Type": media}))
    assert (found.status_code, found.headers["content-type"]) == (200, "image/png")
    assert found.headers["x-segray-version"] == "1"
    assert np.array_equal(decode_mask(found.content), store.mask("1", body))


def test_a_form_and_a_body_are_answered_alike_and_json_says_the_same(store):
    body = picture()

    async def ask(it):
        form = await it.client.post("/v1/segment", files={"image": ("a.jpg", body)})
        include = {"include": ["mask", "polygons", "rle"]}
        told = await it.client.post(
            "/v1/segment", params=include, content=body, headers=JPEG | {"Accept": "application/json"}
        )
        return form, told.json()

    form, told = asked(store, ask)
    mask = store.mask("1", body)
    assert np.array_equal(decode_mask(form.content), mask)
    assert np.array_equal(decode_mask(base64.b64decode(told["mask"])), mask)
    assert {one["id"]: one["pixels"] for one in told["classes"]} == {
        int(number): int((mask == number).sum()) for number in np.unique(mask)
    }
    assert told["version"] == "1"
    assert all({"polygons", "rle"} <= set(one) for one in told["classes"])


def test_an_overlay_shows_the_image_through_the_colours(store):
    body = picture()
    overlay = {"output": "overlay", "opacity": 0}
    found = asked(store, lambda it: it.client.post("/v1/segment", params=overlay, content=body, headers=JPEG))
    assert np.array_equal(decode_image(found.content), decode_image(body))


def test_a_batch_is_answered_in_order_each_with_its_name(store):
    bodies = [picture(48, 80, 0), picture(64, 64, 1), picture(48, 80, 2)]
    files = [("images", (f"{number}.jpg", body)) for number, body in enumerate(bodies)]
    include = {"include": "mask"}
    found = asked(store, lambda it: it.client.post("/v1/segment/batch", params=include, files=files)).json()
    assert [one["name"] for one in found] == ["0.jpg", "1.jpg", "2.jpg"]
    for one, body in zip(found, bodies, strict=True):
        same = decode_mask(base64.b64decode(one["mask"])) == store.mask("1", body)
        assert same.mean() >= 1 - 1e-5


def test_an_image_that_lies_on_its_side_is_segmented_upright(store):
    image = Image.open(io.BytesIO(picture(48, 80, kind="PNG")))
    lying, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    image.save(lying, "PNG", exif=exif)
    upright = io.BytesIO()
    image.transpose(Image.Transpose.ROTATE_270).save(upright, "PNG")
    kind = {"Content-Type": "image/png"}
    found = asked(store, lambda it: it.client.post("/v1/segment", content=lying.getvalue(), headers=kind))
    assert np.array_equal(decode_mask(found.content), store.mask("1", upright.getvalue()))


def test_a_large_image_is_looked_at_in_windows(store):
    body = picture(160, 224)
    found = asked(store, lambda it: it.client.post("/v1/segment", content=body, headers=JPEG), window_above=20_000)
    windowed = store.windowed("1", body)
    assert np.array_equal(decode_mask(found.content), windowed)
    assert not np.array_equal(windowed, store.mask("1", body))


def bomb():
    """A PNG of a few bytes that says it has 30000x30000 pixels."""
    whole = bytearray(picture(8, 8, kind="PNG"))
    whole[16:24] = (30000).to_bytes(4, "big") * 2
    whole[29:33] = crc32(whole[12:29]).to_bytes(4, "big")
    return bytes(whole)


REFUSED = {
    "empty": (b"", "image/jpeg", 422, "no bytes"),
    "text": (b"hello", "image/jpeg", 422, "cannot be read"),
    "of no type": (picture(), "", 415, "expected image/jpeg"),
    "text by its type": (b"{}", "application/json", 415, "application/json"),
    "a GIF": (picture(kind="GIF"), "image/png", 415, "GIF"),
    "cut off": (picture(200, 300)[:2000], "image/jpeg", 422, "truncated"),
    "cut off in the header": (picture(kind="PNG")[:20], "image/png", 422, "cannot be read"),
    "many pixels": (picture(300, 400), "image/jpeg", 413, "400x300"),
    "a bomb": (bomb(), "image/png", 413, "pixels"),
    "many bytes": (b"\xff\xd8" + bytes(2**20), "image/jpeg", 413, "MiB"),
    "a form without a boundary": (b"x", "multipart/form-data", 422, "form cannot be read"),
    "a form without files": (b"--b--\r\n", "multipart/form-data; boundary=b", 422, "no file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_image_or_too_large_is_refused_with_its_reason(store, case):
    body, kind, status, said = REFUSED[case]
    headers = {"Content-Type": kind} if kind else {}

    async def ask(it):
        return await it.client.post("/v1/segment", content=body, headers=headers)

    found = asked(store, ask, most_pixels=100_000, most_mib=0.5)
    assert found.status_code == status, found.text
    assert said in found.json()["detail"]


def test_parameters_and_paths_that_are_none_are_refused_in_one_line(store):
    async def ask(it):
        wrong = {"output": "video", "opacity": "2", "include": "everything"}
        files = [("images", (f"{number}.jpg", picture())) for number in range(3)]
        return [
            await it.client.post("/v1/segment", params=wrong, content=picture(), headers=JPEG),
            await it.client.post("/v1/segment/batch", files=files),
            await it.client.post("/v1/segment", files=files[:2]),
            await it.client.get("/v1/nothing"),
            await it.client.get("/v1/segment"),
        ]

    found = asked(store, ask, most_images=2)
    assert [one.status_code for one in found] == [422, 413, 422, 404, 405]
    assert all(isinstance(one.json()["detail"], str) for one in found)
    assert all(name in found[0].json()["detail"] for name in ("output", "opacity", "include"))


def test_a_length_that_is_a_lie_is_not_believed(store):
    async def ask(it):
        async def chunks():
            for _ in range(100):
                yield bytes(2**14)

        return await it.client.post("/v1/segment", content=chunks(), headers=JPEG)

    assert asked(store, ask, most_mib=0.1).status_code == 413


def test_who_brings_no_token_is_refused_and_the_page_is_open(store):
    async def ask(it):
        client, right = it.client, {"Authorization": f"Bearer {TOKEN}"}
        guarded = [("post", "/v1/segment"), ("post", "/v1/segment/batch"), ("get", "/v1/model"), ("get", "/metrics")]
        wrong = [{}, {"Authorization": "Bearer x"}, {"Authorization": f"Basic {TOKEN}"}, {"Authorization": TOKEN}]
        refused = [await client.request(*one, headers=headers) for one in guarded for headers in wrong]
        opened = [await client.get(path) for path in ("/", "/docs", "/healthz", "/readyz", "/openapi.json")]
        known = await client.post("/v1/segment", content=picture(), headers=JPEG | right)
        return refused, opened, known

    refused, opened, known = asked(store, ask, token=TOKEN)
    assert {one.status_code for one in refused} == {401}
    assert all(one.headers["www-authenticate"] == "Bearer" for one in refused)
    assert {one.status_code for one in opened} == {200}
    assert known.status_code == 200


def test_more_at_once_than_there_is_room_for_are_sent_away(store):
    async def ask(it):
        go = asyncio.Event()
        segment = it.replica.segment

        async def slow(*given):
            await go.wait()
            return await segment(*given)

        it.replica.segment = slow
        tasks = [asyncio.create_task(it.client.post("/v1/segment", content=picture(), headers=JPEG)) for _ in range(4)]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        healthy = await it.client.get("/healthz")
        go.set()
        return sorted([(await one).status_code for one in tasks]), next(iter(done)).result(), healthy

    codes, first, healthy = asked(store, ask, at_once=3)
    assert codes == [200, 200, 200, 429]
    assert first.headers["retry-after"] == "1"
    assert healthy.status_code == 200


def test_what_takes_too_long_is_given_up(store):
    async def ask(it):
        async def never(*_):
            await asyncio.sleep(60)

        it.replica.segment = never
        return await it.client.post("/v1/segment", content=picture(), headers=JPEG)

    found = asked(store, ask, time_limit_s=0.1)
    assert (found.status_code, found.headers["retry-after"]) == (503, "5")
    assert "0.1 s" in found.json()["detail"]


def test_the_model_tells_its_version_classes_and_metrics(store):
    told = asked(store, lambda it: it.client.get("/v1/model")).json()
    assert (told["model"], told["version"], told["metrics"]) == ("streets", "1", {"val/miou": 0.5})
    assert [one["name"] for one in told["classes"]][:2] == ["sky", "building"]
    assert all(len(one["colour"]) == 3 for one in told["classes"])


def test_metrics_count_requests_and_the_classes_that_were_answered(store):
    body = picture()

    async def ask(it):
        for _ in range(3):
            await it.client.post("/v1/segment", content=body, headers=JPEG)
        await it.client.post("/v1/segment", content=b"x", headers=JPEG)
        await it.client.get("/v1/secret/path")

        def is_counted(state):
            return sum(count for key, count in state.counts.items() if key[0] == "segray_requests") >= 5

        await it.until(is_counted)
        return (await it.client.get("/metrics")).text

    families = text_string_to_metric_families(asked(store, ask))
    found = {(one.name, *sorted(one.labels.values())): one.value for family in families for one in family.samples}
    assert found["segray_requests_total", "/v1/segment", "200"] == 3
    assert found["segray_requests_total", "/v1/segment", "422"] == 1
    assert found["segray_requests_total", "404", "other"] == 1
    assert found["segray_batch_images_count", "1"] == 3
    names = [one for one in found if one[0] == "segray_class_pixels_total"]
    assert sum(found[name] for name in names) == 3 * 48 * 80
    assert found["segray_replicas", "1"] == 1


def test_pages_need_nothing_from_elsewhere(store):
    async def ask(it):
        return [(await it.client.get(path)) for path in ("/", "/docs")]

    for page in asked(store, ask):
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert "https://" not in page.text
        assert "//cdn" not in page.text
    assert "/v1/segment/batch" in page.text


def test_a_batch_with_one_bad_image_leaves_nobody_at_work_and_each_image_takes_a_place(store):
    async def ask(it):
        seen = []
        segment = it.replica.segment

        async def counted(*given):
            seen.append(1)
            return await segment(*given)

        it.replica.segment = counted
        files = [("images", (f"{number}.jpg", picture())) for number in range(3)]
        bad = await it.client.post("/v1/segment/batch", files=[*files, ("images", ("bad.jpg", b"x"))])
        started = len(seen)
        fits = await it.client.post("/v1/segment/batch", files=files)
        too_many = await it.client.post("/v1/segment/batch", files=[*files, *files])
        return bad, started, fits, too_many

    bad, started, fits, too_many = asked(store, ask, at_once=4)
    assert (bad.status_code, started) == (422, 0)
    assert "bad.jpg" in bad.json()["detail"]
    assert (fits.status_code, too_many.status_code) == (200, 429)


@pytest.mark.parametrize("charset", ["utf-7", "unicode_escape", "none-such"])
def test_a_name_in_a_charset_that_cannot_be_written_is_no_error_of_ours(store, charset):
    head = b'--b\r\nContent-Disposition: form-data; name="images"; filename="+2AA-\\ud800"\r\n\r\n'
    kind = {"Content-Type": f"multipart/form-data; boundary=b; charset={charset}"}

    async def ask(it):
        path = "/v1/segment/batch"
        bad = await it.client.post(path, content=head + b"x\r\n--b--\r\n", headers=kind)
        return bad, await it.client.post(path, content=head + picture() + b"\r\n--b--\r\n", headers=kind)

    bad, good = asked(store, ask)
    assert bad.status_code == 422
    assert isinstance(bad.json()["detail"], str)
    assert good.status_code in {200, 422}


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", "image/png"),
        ("application/json", "application/json"),
        ("APPLICATION/JSON", "application/json"),
        ("application/*", "application/json"),
        ("image/png;q=0, application/json", "application/json"),
        ("application/json, image/png;q=0.1", "application/json"),
        ("image/png, application/json;q=0.5", "image/png"),
        ("text/html, */*;q=0.1", "image/png"),
        ("application/json;q=x, image/*", "image/png"),
    ],
)
def test_what_is_accepted_most_is_answered(store, accept, kind):
    headers = JPEG | {"Accept": accept}
    found = asked(store, lambda it: it.client.post("/v1/segment", content=picture(), headers=headers))
    assert found.headers["content-type"] == kind


def test_strangers_hear_whether_it_is_ready_and_no_more(store):
    async def ask(it):
        right = {"Authorization": f"Bearer {TOKEN}"}
        return (await it.client.get("/readyz")).json(), (await it.client.get("/readyz", headers=right)).json()

    stranger, known = asked(store, ask, token=TOKEN)
    assert set(stranger) == {"ready"}
    assert {"version", "problems", "replicas"} <= set(known)


def test_who_leaves_is_counted_as_such(store):
    async def ask(it):
        async def never(*_):
            await asyncio.sleep(60)

        it.replica.segment = never
        task = asyncio.create_task(it.client.post("/v1/segment", content=picture(), headers=JPEG))
        await asyncio.sleep(0.2)
        task.cancel()
        await asyncio.wait([task])
        return dict(it.desk.tally.counts)

    counts = asked(store, ask)
    assert counts["segray_requests", ("/v1/segment", "499"), ""] == 1


def test_an_error_of_a_replica_is_a_503_in_one_line(store):
    async def ask(it):
        async def failing(*_):
            raise RayError("out of memory")

        it.replica.segment = failing
        return await it.client.post("/v1/segment", content=picture(), headers=JPEG)

    found = asked(store, ask)
    assert (found.status_code, found.headers["retry-after"]) == (503, "5")
    assert "replica" in found.json()["detail"]
