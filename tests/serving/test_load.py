"""A promotion and a rollback while a hundred clients ask: nobody notices but by the version."""

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


def loaded(plan, known=None):
    """What becomes of a plan, from a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(apply_load, plan, MaskChecker(known) if known else None).result()


def version(url):
    request = urllib.request.Request(f"{url}/v1/model", headers={"Authorization": KNOWN["Authorization"]})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read())["version"]


@pytest.mark.slow
def test_promotion_and_rollback_at_half_of_the_saturation_load_fail_no_request(server):
    info, store, _ = server
    url, bodies = f"{info.url}/v1/segment", [(body, KNOWN) for body in BODIES]
    known = {(which, number): store.mask(number, body) for which, body in enumerate(BODIES) for number in ("1", "2")}
    loaded(LoadPlan(url, bodies, 16, 4.0))
    saturated = loaded(LoadPlan(url, bodies, 16, 8.0)).rate

    set_at = {}

    def promote():
        for number in ("2", "1"):
            time.sleep(SETTLE_S)
            set_at[number] = time.time()
            store.set("champion", number)

    with ThreadPoolExecutor(1) as pool:
        promoting = pool.submit(promote)
        load = loaded(LoadPlan(url, bodies, CLIENTS, SECONDS, rate=saturated / 2), known)
        promoting.result()
    answered = [(load.begun + one.sent + one.seconds, one.version) for one in load.samples]
    delays = {
        number: min(at for at, by in answered if by == number and at > since) - since
        for number, since in set_at.items()
    }
    print(
        f"saturated {saturated:.0f}/s; {len(load.samples)} requests at {load.rate:.0f}/s, {len(load.failed)} failed, "
        f"p50 {load.quantile_ms(0.5):.0f} ms, p95 {load.quantile_ms(0.95):.0f} ms, "
        f"to the first answer {delays['2']:.1f} s and {delays['1']:.1f} s"
    )
    assert not load.failed, load.failed[0]
    assert {one.version for one in load.samples} == {"1", "2"}
    assert max(delays.values()) <= SOON_S
    assert version(info.url) == "1"
