"""A promotion and a rollback under the load of a hundred clients fail no request."""

import json
import time
import urllib.request
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import pytest

from benchmarks.load_generator import LoadPlan, MaskChecker, apply_load

from .conftest import KNOWN, picture

CLIENTS, SECONDS, SETTLE_S, SOON_S = 120, 40.0, 12.0, 5.0
BODIES = [
    picture(height, width, seed) for seed, (height, width) in enumerate([(64, 64), (96, 128), (128, 96), (192, 256)])
]


def run_load(plan, masks=None):
    """The result of a load plan, run in a separate process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(apply_load, plan, MaskChecker(masks) if masks else None).result()


def version(url):
    request = urllib.request.Request(f"{url}/v1/model", headers={"Authorization": KNOWN["Authorization"]})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read())["version"]


@pytest.mark.slow
def test_promotion_and_rollback_at_half_of_the_saturation_load_fail_no_request(server):
    info, store, _ = server
    url, bodies = f"{info.url}/v1/segment", [(body, KNOWN) for body in BODIES]
    masks = {(index, number): store.mask(number, body) for index, body in enumerate(BODIES) for number in ("1", "2")}
    run_load(LoadPlan(url, bodies, 16, 4.0))
    saturated = run_load(LoadPlan(url, bodies, 16, 8.0)).rate

    set_at = {}

    def promote():
        for number in ("2", "1"):
            time.sleep(SETTLE_S)
            set_at[number] = time.time()
            store.set("champion", number)

    with ThreadPoolExecutor(1) as pool:
        promoting = pool.submit(promote)
        load = run_load(LoadPlan(url, bodies, CLIENTS, SECONDS, rate=saturated / 2), masks)
        promoting.result()
    answers = [(load.begun + sample.sent + sample.seconds, sample.version) for sample in load.samples]
    delays = {
        number: min(at for at, by in answers if by == number and at > since) - since for number, since in set_at.items()
    }
    print(
        f"saturated {saturated:.0f}/s; {len(load.samples)} requests at {load.rate:.0f}/s, {len(load.failed)} failed, "
        f"p50 {load.quantile_ms(0.5):.0f} ms, p95 {load.quantile_ms(0.95):.0f} ms, "
        f"to the first answer {delays['2']:.1f} s and {delays['1']:.1f} s"
    )
    assert not load.failed, load.failed[0]
    assert {sample.version for sample in load.samples} == {"1", "2"}
    assert max(delays.values()) <= SOON_S
    assert version(info.url) == "1"
