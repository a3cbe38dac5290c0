"""HTTP requests: responses, and the reasons of rejections."""

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


def call(store, request, **settings):
    """Runs `request(serving)` with a LocalServing and returns its result."""

    async def run():
        async with served(store, **settings) as serving:
            return await request(serving)

    return asyncio.run(run())


@pytest.mark.parametrize(("kind", "media"), [("JPEG", "image/jpeg"), ("PNG", "image/png"), ("WEBP", "image/webp")])
def test_the_mask_equals_the_predictors(store, kind, media):
    body = picture(kind=kind)
    response = call(
        store, lambda serving: serving.client.post("/v1/segment", content=body, headers={"Content-Type": media})
    )
    assert (response.status_code, response.headers["content-type"]) == (200, "image/png")
    assert response.headers["x-segray-version"] == "1"
    assert np.array_equal(decode_mask(response.content), store.mask("1", body))


def test_form_body_and_json_responses_are_equal(store):
    body = picture()

    async def request(serving):
        form = await serving.client.post("/v1/segment", files={"image": ("a.jpg", body)})
        include = {"include": ["mask", "polygons", "rle"]}
        response = await serving.client.post(
            "/v1/segment", params=include, content=body, headers=JPEG | {"Accept": "application/json"}
        )
        return form, response.json()

    form, summary = call(store, request)
    mask = store.mask("1", body)
    assert np.array_equal(decode_mask(form.content), mask)
    assert np.array_equal(decode_mask(base64.b64decode(summary["mask"])), mask)
    assert {entry["id"]: entry["pixels"] for entry in summary["classes"]} == {
        int(number): int((mask == number).sum()) for number in np.unique(mask)
    }
    assert summary["version"] == "1"
    assert all({"polygons", "rle"} <= set(entry) for entry in summary["classes"])


def test_an_overlay_shows_the_image_through_the_colours(store):
    body = picture()
    overlay = {"output": "overlay", "opacity": 0}
    response = call(
        store, lambda serving: serving.client.post("/v1/segment", params=overlay, content=body, headers=JPEG)
    )
    assert np.array_equal(decode_image(response.content), decode_image(body))


def test_a_batch_is_answered_in_order_each_with_its_name(store):
    bodies = [picture(48, 80, 0), picture(64, 64, 1), picture(48, 80, 2)]
    files = [("images", (f"{number}.jpg", body)) for number, body in enumerate(bodies)]
    include = {"include": "mask"}
    results = call(store, lambda serving: serving.client.post("/v1/segment/batch", params=include, files=files)).json()
    assert [result["name"] for result in results] == ["0.jpg", "1.jpg", "2.jpg"]
    for result, body in zip(results, bodies, strict=True):
        same = decode_mask(base64.b64decode(result["mask"])) == store.mask("1", body)
        assert same.mean() >= 1 - 1e-5


def test_an_image_is_rotated_according_to_its_exif_orientation(store):
    image = Image.open(io.BytesIO(picture(48, 80, kind="PNG")))
    lying, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    image.save(lying, "PNG", exif=exif)
    upright = io.BytesIO()
    image.transpose(Image.Transpose.ROTATE_270).save(upright, "PNG")
    kind = {"Content-Type": "image/png"}
    response = call(store, lambda serving: serving.client.post("/v1/segment", content=lying.getvalue(), headers=kind))
    assert np.array_equal(decode_mask(response.content), store.mask("1", upright.getvalue()))


def test_a_large_image_is_segmented_with_sliding_windows(store):
    body = picture(160, 224)
    response = call(
        store, lambda serving: serving.client.post("/v1/segment", content=body, headers=JPEG), slide_above_pixels=20_000
    )
    windowed = store.sliding_mask("1", body)
    assert np.array_equal(decode_mask(response.content), windowed)
    assert not np.array_equal(windowed, store.mask("1", body))


def bomb():
    """A PNG of a few bytes that says it has 30000x30000 pixels."""
    whole = bytearray(picture(8, 8, kind="PNG"))
    whole[16:24] = (30000).to_bytes(4, "big") * 2
    whole[29:33] = crc32(whole[12:29]).to_bytes(4, "big")
    return bytes(whole)


REFUSED = {
    "empty": (b"", "image/jpeg", 422, "is empty"),
    "text": (b"hello", "image/jpeg", 422, "cannot read"),
    "of no type": (picture(), "", 415, "expected image/jpeg"),
    "text by its type": (b"{}", "application/json", 415, "application/json"),
    "a GIF": (picture(kind="GIF"), "image/png", 415, "GIF"),
    "cut off": (picture(200, 300)[:2000], "image/jpeg", 422, "truncated"),
    "cut off in the header": (picture(kind="PNG")[:20], "image/png", 422, "cannot read"),
    "many pixels": (picture(300, 400), "image/jpeg", 413, "400x300"),
    "a bomb": (bomb(), "image/png", 413, "pixels"),
    "many bytes": (b"\xff\xd8" + bytes(2**20), "image/jpeg", 413, "MiB"),
    "a form without a boundary": (b"x", "multipart/form-data", 422, "cannot parse the form"),
    "a form without files": (b"--b--\r\n", "multipart/form-data; boundary=b", 422, "no file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_invalid_and_too_large_images_are_rejected_with_the_reason(store, case):
    body, media_type, status, reason = REFUSED[case]
    headers = {"Content-Type": media_type} if media_type else {}

    async def request(serving):
        return await serving.client.post("/v1/segment", content=body, headers=headers)

    response = call(store, request, max_image_pixels=100_000, max_request_mib=0.5)
    assert response.status_code == status, response.text
    assert reason in response.json()["detail"]


def test_invalid_parameters_and_paths_are_rejected_in_one_line(store):
    async def request(serving):
        wrong = {"output": "video", "opacity": "2", "include": "everything"}
        files = [("images", (f"{number}.jpg", picture())) for number in range(3)]
        return [
            await serving.client.post("/v1/segment", params=wrong, content=picture(), headers=JPEG),
            await serving.client.post("/v1/segment/batch", files=files),
            await serving.client.post("/v1/segment", files=files[:2]),
            await serving.client.get("/v1/nothing"),
            await serving.client.get("/v1/segment"),
        ]

    responses = call(store, request, max_batch_images=2)
    assert [response.status_code for response in responses] == [422, 413, 422, 404, 405]
    assert all(isinstance(response.json()["detail"], str) for response in responses)
    assert all(name in responses[0].json()["detail"] for name in ("output", "opacity", "include"))


def test_a_body_without_a_declared_length_is_limited(store):
    async def request(serving):
        async def chunks():
            yield picture()
            for _ in range(100):
                yield bytes(2**14)

        return await serving.client.post("/v1/segment", content=chunks(), headers=JPEG)

    assert call(store, request, max_request_mib=0.1).status_code == 413


def test_a_token_is_required_except_for_the_pages(store):
    async def request(serving):
        client, right = serving.client, {"Authorization": f"Bearer {TOKEN}"}
        guarded = [("post", "/v1/segment"), ("post", "/v1/segment/batch"), ("get", "/v1/model"), ("get", "/metrics")]
        wrong = [{}, {"Authorization": "Bearer x"}, {"Authorization": f"Basic {TOKEN}"}, {"Authorization": TOKEN}]
        refused = [await client.request(*route, headers=headers) for route in guarded for headers in wrong]
        public = [await client.get(path) for path in ("/", "/docs", "/healthz", "/readyz", "/openapi.json")]
        authorized = await client.post("/v1/segment", content=picture(), headers=JPEG | right)
        return refused, public, authorized

    refused, public, authorized = call(store, request, token=TOKEN)
    assert {response.status_code for response in refused} == {401}
    assert all(response.headers["www-authenticate"] == "Bearer" for response in refused)
    assert {response.status_code for response in public} == {200}
    assert authorized.status_code == 200


def test_requests_above_the_limit_of_pending_images_are_rejected(store):
    async def request(serving):
        go = asyncio.Event()
        segment = serving.replica.segment

        async def slow(*args):
            await go.wait()
            async for response in segment(*args):
                yield response

        serving.replica.segment = slow
        tasks = [
            asyncio.create_task(serving.client.post("/v1/segment", content=picture(), headers=JPEG)) for _ in range(4)
        ]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        healthy = await serving.client.get("/healthz")
        go.set()
        return sorted([(await task).status_code for task in tasks]), next(iter(done)).result(), healthy

    codes, first, healthy = call(store, request, max_pending_images=5)
    assert codes == [200, 200, 200, 429]
    assert first.headers["retry-after"] == "1"
    assert healthy.status_code == 200


def test_a_request_times_out(store):
    async def request(serving):
        async def never(*_):
            await asyncio.sleep(60)
            yield None

        serving.replica.segment = never
        return await serving.client.post("/v1/segment", content=picture(), headers=JPEG)

    # With a shorter time, a busy machine refuses the image by its estimate.
    response = call(store, request, request_timeout_s=3.0)
    assert (response.status_code, response.headers.get("retry-after")) == (503, "5")
    assert "timed out after 3 s" in response.json()["detail"]


def test_the_model_has_version_classes_and_metrics(store):
    model = call(store, lambda serving: serving.client.get("/v1/model")).json()
    assert (model["model"], model["version"], model["metrics"]) == ("streets", "1", {"val/miou": 0.5})
    assert [entry["name"] for entry in model["classes"]][:2] == ["sky", "building"]
    assert all(len(entry["colour"]) == 3 for entry in model["classes"])


def test_metrics_count_requests_and_predicted_classes(store):
    body = picture()

    async def request(serving):
        for _ in range(3):
            await serving.client.post("/v1/segment", content=body, headers=JPEG)
        await serving.client.post("/v1/segment", content=b"x", headers=JPEG)
        await serving.client.get("/v1/secret/path")

        def is_counted(state):
            return sum(count for key, count in state.counts.items() if key[0] == "segray_requests") >= 5

        await serving.until(is_counted)
        return (await serving.client.get("/metrics")).text

    families = text_string_to_metric_families(call(store, request))
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value for family in families for sample in family.samples
    }
    assert samples["segray_requests_total", "/v1/segment", "200"] == 3
    assert samples["segray_requests_total", "/v1/segment", "422"] == 1
    assert samples["segray_requests_total", "404", "other"] == 1
    assert samples["segray_batch_images_count", "1"] == 3
    names = [name for name in samples if name[0] == "segray_class_pixels_total"]
    assert sum(samples[name] for name in names) == 3 * 48 * 80
    assert samples["segray_replicas", "1"] == 1


def test_pages_load_no_external_resources(store):
    async def request(serving):
        return [(await serving.client.get(path)) for path in ("/", "/docs")]

    for page in call(store, request):
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert "https://" not in page.text
        assert "//cdn" not in page.text
    assert "/v1/segment/batch" in page.text


def test_a_batch_with_an_invalid_image_starts_no_work_and_every_image_counts_as_pending(store):
    async def request(serving):
        calls = []
        segment = serving.replica.segment

        async def counted(*args):
            calls.append(1)
            async for response in segment(*args):
                yield response

        serving.replica.segment = counted
        files = [("images", (f"{number}.jpg", picture())) for number in range(3)]
        bad = await serving.client.post("/v1/segment/batch", files=[*files, ("images", ("bad.jpg", b"x"))])
        started = len(calls)
        fits = await serving.client.post("/v1/segment/batch", files=files)
        too_many = await serving.client.post("/v1/segment/batch", files=[*files, *files])
        return bad, started, fits, too_many

    bad, started, fits, too_many = call(store, request, max_pending_images=4)
    assert (bad.status_code, started) == (422, 0)
    assert "bad.jpg" in bad.json()["detail"]
    assert (fits.status_code, too_many.status_code) == (200, 429)


@pytest.mark.parametrize("charset", ["utf-7", "unicode_escape", "none-such"])
def test_a_file_name_in_an_unusual_charset_is_not_a_server_error(store, charset):
    head = b'--b\r\nContent-Disposition: form-data; name="images"; filename="+2AA-\\ud800"\r\n\r\n'
    kind = {"Content-Type": f"multipart/form-data; boundary=b; charset={charset}"}

    async def request(serving):
        path = "/v1/segment/batch"
        bad = await serving.client.post(path, content=head + b"x\r\n--b--\r\n", headers=kind)
        return bad, await serving.client.post(path, content=head + picture() + b"\r\n--b--\r\n", headers=kind)

    bad, good = call(store, request)
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
def test_the_accept_header_selects_the_response_type(store, accept, kind):
    headers = JPEG | {"Accept": accept}
    response = call(store, lambda serving: serving.client.post("/v1/segment", content=picture(), headers=headers))
    assert response.headers["content-type"] == kind


def test_unauthenticated_clients_see_only_the_readiness(store):
    async def request(serving):
        right = {"Authorization": f"Bearer {TOKEN}"}
        return (await serving.client.get("/readyz")).json(), (await serving.client.get("/readyz", headers=right)).json()

    anonymous, authorized = call(store, request, token=TOKEN)
    assert set(anonymous) == {"ready"}
    assert {"version", "problems", "replicas"} <= set(authorized)


def test_a_replica_error_is_a_503(store):
    async def request(serving):
        async def failing(*_):
            yield None
            raise RayError("out of memory")

        serving.replica.segment = failing
        return await serving.client.post("/v1/segment", content=picture(), headers=JPEG)

    response = call(store, request)
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")
    assert "replica" in response.json()["detail"]
