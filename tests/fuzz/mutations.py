"""Mutations of bytes and of JSON trees. Every choice comes from the given generator, so a seed repeats a mutation."""

import json
import string
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

LENGTHS = (0, 1, 2, 7, 8, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63)
"""Values at the limits of length fields."""
NUMBERS = (-1, -(2**31), -(2**63), 2**53 + 1, 10**30, 0.5, 1e308, -1e308, float("nan"), float("inf"), -0.0, True, False)
DEPTH, DIGITS = 100_000, 5_000
RAW_VALUES = {
    "@deep-list@": "[" * DEPTH + "]" * DEPTH,
    "@deep-object@": '{"a":' * DEPTH + "1" + "}" * DEPTH,
    "@digits@": "9" * DIGITS,
    "@exponent@": "1e999999999",
    "@open@": '{"a": [1, 2',
}
"""Text that replaces a string in the written JSON, because Python's encoder cannot write it."""
RAW_SHARE = 0.03


def flip_bits(draw: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.randint(1, 16) if changed else 0):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def truncate(draw: Random, data: bytes) -> bytes:
    return data[: draw.randrange(len(data) + 1)]


def overwrite_length(draw: Random, data: bytes) -> bytes:
    """Writes a limit value over 1, 2, 4 or 8 bytes, often near the start, where headers store lengths."""
    width = draw.choice((1, 2, 4, 8))
    value = draw.choice(LENGTHS) % 256**width
    end = len(data) if draw.random() < 0.5 else min(len(data), 64)
    start = draw.randrange(max(1, end))
    return data[:start] + value.to_bytes(width, draw.choice(("little", "big"))) + data[start + width :]


def repeat_slice(draw: Random, data: bytes) -> bytes:
    start, end = sorted(draw.randrange(len(data) + 1) for _ in range(2))
    return data[:end] + data[start:end] * draw.choice((1, 2, 50)) + data[end:]


def remove_slice(draw: Random, data: bytes) -> bytes:
    start, end = sorted(draw.randrange(len(data) + 1) for _ in range(2))
    return data[:start] + data[end:]


def insert_noise(draw: Random, data: bytes) -> bytes:
    start = draw.randrange(len(data) + 1)
    return data[:start] + draw.randbytes(draw.randint(1, 200)) + data[start:]


def clear_slice(draw: Random, data: bytes) -> bytes:
    start, end = sorted(draw.randrange(len(data) + 1) for _ in range(2))
    return data[:start] + bytes(end - start) + data[end:]


BYTE_MUTATIONS: tuple[Callable[[Random, bytes], bytes], ...] = (
    *(flip_bits, flip_bits, truncate, overwrite_length, overwrite_length),
    *(repeat_slice, remove_slice, insert_noise, clear_slice),
)


def mutate_bytes(draw: Random, data: bytes, corpus: Sequence[bytes] = ()) -> bytes:
    """Applies one to three mutations; one in eight results is spliced from two entries of the corpus."""
    if corpus and draw.random() < 0.125:
        other = draw.choice(corpus)
        data = data[: draw.randrange(len(data) + 1)] + other[draw.randrange(len(other) + 1) :]
    for _ in range(draw.randint(1, 3)):
        data = draw.choice(BYTE_MUTATIONS)(draw, data)
    return data


def hostile_text(draw: Random, outside: Path) -> str:
    """Returns a text that a careless reader uses as a path, a format or a number."""
    texts = ("", " ", "\0", "a\0b", "..", ".", "/", "../../outside/secret.png", f"{outside}/secret.png", "/etc/passwd")
    more = ("~", "a/../../b", "\ud800", "\u202e", "x\ny", "\x1b[31m", "%s%n", "{0.__class__}", "NaN", "-1", "1e400")
    long = ("x" * 300, "x" * 100_000, "a/" * 3_000, "é" * 200)
    urls = ("http://127.0.0.1:9/x", "file:///etc/passwd", "s3://bucket/x", "os:system", "~root", "CON")
    return draw.choice((*texts, *more, *long, *urls, "".join(draw.choices(string.printable, k=8))))


def hostile_value(draw: Random, outside: Path) -> Any:
    """Returns a value of a wrong type or out of range."""
    if draw.random() < RAW_SHARE:
        return draw.choice(list(RAW_VALUES))
    kinds: tuple[Callable[[], Any], ...] = (
        lambda: None,
        lambda: draw.choice(NUMBERS),
        lambda: draw.choice(LENGTHS),
        lambda: hostile_text(draw, outside),
        lambda: draw.choice(([], {}, [[]], [None], {"": None}, [1, "a"], {"a": {"b": []}})),
        lambda: [draw.choice(NUMBERS) for _ in range(draw.choice((1, 3, 1000)))],
    )
    return draw.choice(kinds)()


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Returns the (container, key) pairs of a tree."""
    found: list[tuple[Any, Any]] = []
    pending = [tree]
    while pending:
        node = pending.pop()
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, value in items:
            found.append((node, key))
            pending.append(value)
    return found


def mutate_tree(draw: Random, tree: Any, outside: Path) -> Any:
    """Returns a copy of a JSON tree with one to three values replaced, removed, moved, repeated or renamed."""
    tree = [deepcopy(tree)]
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        _mutate_place(draw, tree, outside)
    return tree[0] if tree else None


def _mutate_place(draw: Random, tree: list[Any], outside: Path) -> None:
    places = _places(tree)
    if not places:
        return
    container, key = draw.choice(places)
    value = container[key]
    action = draw.randrange(8)
    if action == 0:
        del container[key]
    elif action == 1:  # the value of another place
        other, other_key = draw.choice(places)
        container[key] = deepcopy(other[other_key])
    elif action == 2:
        container[key] = draw.choice(([value], {"value": value}, str(value), [deepcopy(value) for _ in range(3)]))
    elif action == 3 and isinstance(value, int | float):
        container[key] = draw.choice((-value, value * 1e6, value + 1, value - 1, value / 3))
    elif action == 4 and isinstance(container, dict):
        container[draw.choice((hostile_text(draw, outside), str(key).upper(), f"{key} "))] = container.pop(key)
    elif action == 5 and isinstance(container, dict):
        container[hostile_text(draw, outside)] = hostile_value(draw, outside)
    elif action == 6 and isinstance(container, list):
        container.extend([deepcopy(value)] * draw.choice((1, 3, 300)))
    else:
        container[key] = hostile_value(draw, outside)


def encode_json(draw: Random, tree: Any) -> bytes:
    """Encodes a tree as JSON with the raw values, repeated keys, a byte order mark or another encoding."""
    text = json.dumps(tree, ensure_ascii=draw.random() < 0.8)
    for name, raw in RAW_VALUES.items():
        text = text.replace(f'"{name}"', raw)
    if draw.random() < 0.1 and text.startswith("{") and len(text) > 2:
        inner = text[1:-1]
        text = f"{{{inner}, {inner}}}"  # every key of the root occurs twice
    encoding = draw.choice(("utf-8",) * 12 + ("utf-8-sig", "utf-16", "latin-1"))
    return text.encode(encoding, "backslashreplace" if encoding == "latin-1" else "surrogatepass")


def mutate_json(draw: Random, tree: Any, outside: Path) -> bytes:
    """Returns the JSON of a mutated tree; one in ten results has mutated bytes instead."""
    if draw.random() < 0.1:
        return mutate_bytes(draw, json.dumps(tree).encode())
    return encode_json(draw, mutate_tree(draw, tree, outside))


def mutate_text(draw: Random, text: str, outside: Path) -> bytes:
    """Mutates the lines of a text file, or its bytes."""
    if draw.random() < 0.25:
        return mutate_bytes(draw, text.encode())
    lines = text.splitlines()
    for _ in range(draw.randint(1, 3)):
        row = draw.randrange(len(lines) + 1)
        words = lines[row].split(" ") if row < len(lines) else [""]
        words[draw.randrange(len(words))] = hostile_text(draw, outside)
        choices = ([" ".join(words)], [], lines[row : row + 1] * 2, [hostile_text(draw, outside)], ["# " + words[0]])
        lines[row : row + 1] = draw.choice(choices)
    joined = draw.choice(("\n", "\n", "\r\n", "\r")).join(lines)
    return joined.encode(draw.choice(("utf-8",) * 8 + ("utf-8-sig", "utf-16")), "surrogatepass")
