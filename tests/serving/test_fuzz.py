"""Malformed requests never cause a status 5xx, a crash of a replica, or growing memory."""

import asyncio
import os
import random
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path

import aiohttp
import pytest

from benchmarks.memory_monitor import monitor_memory

from .conftest import KNOWN, picture

BODIES, CASES, AT_ONCE = 4500, 250, 8
GROWTH_MIB = 64
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
WHOLE = [picture(48, 80, seed, kind) for seed in range(3) for kind in ("JPEG", "PNG", "WEBP")]
PNG = picture(kind="PNG")
LONG = zlib.compress(bytes(2**24))
FORM = "multipart/form-data"
TYPES = ["image/jpeg", "image/png", "image/webp", f"{FORM}; boundary=b", FORM, f"{FORM}; boundary={'x' * 300}"]
TYPES += [f"{FORM}; boundary=b; charset=utf-7", f"{FORM}; boundary=b; charset=unicode_escape"]
TYPES += ["", "image/jpeg; charset=\xe9", "IMAGE/PNG", "application/octet-stream", "text/html"]
QUERIES = ["", "?output=json", "?output=overlay&opacity=1", "?output=json&include=polygons&include=rle", "?opacity=nan"]
QUERIES += ["?output=video", "?include=mask&include=mask", "?opacity=1e400", "?output=%00", "?" + "a=b&" * 500]


def cut(draw, body):
    return body[: draw.randrange(len(body))]


def flipped(draw, body):
    spoilt = bytearray(body)
    for _ in range(draw.randrange(1, 20)):
        spoilt[draw.randrange(len(body))] ^= 1 << draw.randrange(8)
    return bytes(spoilt)


def noise(draw, _):
    return draw.randbytes(draw.randrange(2000))


def headed(draw, body):
    return body[:20] + draw.randbytes(len(body) - 20)


def chunk(kind, content):
    whole = kind + content
    return len(content).to_bytes(4, "big") + whole + zlib.crc32(whole).to_bytes(4, "big")


def giant(draw, _):
    """A PNG with a wrong size in its header."""
    sides = draw.randrange(1, 2**31).to_bytes(4, "big") + draw.randrange(1, 2**31).to_bytes(4, "big")
    return PNG[:8] + chunk(b"IHDR", sides + PNG[24:29]) + PNG[33:]


def wordy(_draw, _):
    """A PNG with a text that decompresses to a thousand times its size."""
    return PNG[:33] + chunk(b"zTXt", b"x\0\0" + LONG) + PNG[33:]


def form(draw, body):
    name = draw.choice([b"a.jpg", b"../../etc/passwd", b"\xff", b"x" * 5000])
    head = b'Content-Disposition: form-data; name="image"; filename="' + name + b'"\r\n\r\n'
    return b"--b\r\n" + head + body + draw.choice([b"\r\n--b--\r\n", b"\r\n--b", b""])


def dashes(draw, _):
    return b"--b\r\n" * draw.randrange(1, 50) + draw.randbytes(50)


SPOILT = (cut, flipped, noise, headed, giant, wordy, form, dashes)


async def fuzz(url, draw, bodies=BODIES):
    """The number of responses by status."""
    counts, limit = Counter(), asyncio.Semaphore(AT_ONCE)

    async def send(session):
        path = draw.choice(["/v1/segment", "/v1/segment", "/v1/segment/batch"]) + draw.choice(QUERIES[:4] * 2 + QUERIES)
        headers = {"Authorization": KNOWN["Authorization"], "Content-Type": draw.choice(TYPES[:4] + TYPES)}
        headers |= {"Accept": draw.choice(["*/*", "application/json", "\xff", "image/png;q=x", ""])}
        body = draw.choice(SPOILT)(draw, draw.choice(WHOLE))
        async with limit, session.post(url + path, data=body, headers=headers) as answer:
            await answer.read()
            counts[answer.status] += 1

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(send(session) for _ in range(bodies)))
    return counts


def memory():
    with monitor_memory(os.getpid()) as peak:
        asyncio.run(asyncio.sleep(1.0))
    return peak.memory / 2**20


@pytest.mark.slow
def test_malformed_bodies_and_parameters_are_refused_without_a_crash_or_growth(server):
    info, _, _ = server
    draw = random.Random(0)
    warm = asyncio.run(fuzz(info.url, random.Random(1), 500))  # allocates what is allocated once
    before = memory()
    counts = asyncio.run(fuzz(info.url, draw))
    grown = memory() - before
    print(f"{BODIES} bodies: {dict(sorted(counts.items()))}, {grown:+.0f} MiB")
    assert sum(counts.values()) == BODIES
    assert set(counts) | set(warm) <= {200, 413, 415, 422}
    assert counts[200]
    assert counts[422] > BODIES / 10
    assert grown < GROWTH_MIB


@pytest.mark.slow
def test_responses_match_the_openapi_schema(server):
    info, store, _ = server
    command = [Path(sys.executable).with_name("schemathesis"), "run", f"{info.url}/openapi.json", "--seed", "1"]
    command += ["--header", f"Authorization: {KNOWN['Authorization']}", "--max-examples", str(CASES), "--workers", "4"]
    command += ["--checks", CHECKS, "--phases", "examples,coverage,fuzzing", "--no-color"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False, cwd=store.folder)
    print(done.stdout[-1500:])
    assert done.returncode == 0, done.stdout[-6000:]
