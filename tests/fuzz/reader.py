"""A reader of a stranger's bytes, the files that it is given, and the verdict on what it does with them."""

import os
import re
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from random import Random
from typing import Any

import pyarrow as pa

from segray.core.errors import UserError

from .images import hostile_image, save, seed_images, seed_masks
from .mutations import encode_json, mutate_bytes, mutate_json, mutate_text
from .sandbox import Sandbox
from .tables import hostile_table_file, write_arrow, write_parquet

Content = bytes | str | dict[str, Any] | list[Any] | pa.Table
Files = Mapping[str, Content]
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
TABLES = (".parquet", ".arrow")
MAX_MESSAGE = 20_000
CONTINUED = re.compile(r"(  .*|[A-Z].*|choose .*)")
"""Lines of a message after the first: an indented entry of a list, or a sentence of segray."""
WHOLE_SOURCE = ("the masks contain ", "the source contains no image", "there are ", "--split leaves")
"""Starts of messages about all masks of a source, which name no single file."""
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")
Mutate = Callable[[Random, bytes, Path], bytes]


@dataclass(frozen=True)
class Reader:
    """A reader and the valid files that its inputs are made from.

    Attributes:
        files: function that returns valid files by relative path.
        read: function that reads the files of a source folder and may write to a target folder.
        weight: share of the inputs, relative to the other readers; readers that take little time have more.
        limit_s: limit of an input in seconds of processor time.
        repair: function that repairs checksums and sizes after a mutation, so that later checks are reached.
        mutations: mutations of single files by suffix, in place of the general ones.
        names_source: `False` if the reader receives bytes and does not know a file name.
        follows_links: `True` if the reader follows links out of the source by design.
        has_tree: `False` if the reader is given single files by name: their kind and links are the user's choice.
        group: readers of a group share a process.
    """

    files: Callable[[Random], Files]
    read: Callable[[Random, Path, Path], object]
    weight: float = 1.0
    limit_s: float = 10.0
    repair: Callable[[Random, Path], None] | None = None
    mutations: Mapping[str, Mutate] | None = None
    names_source: bool = True
    follows_links: bool = False
    has_tree: bool = True
    group: str = "files"


@dataclass(frozen=True)
class Outcome:
    """What a reader did with an input: "accepted", "rejected" with a proper message, or "finding"."""

    status: str
    detail: str = ""


def run_input(reader: Reader, draw: Random, root: Path) -> Outcome:
    """Writes an input below `root`, reads it and returns the outcome. The input stays on disk."""
    sandbox = Sandbox(root, reader.follows_links)
    sandbox.add_secret("secret.png", save_secret())
    write_input(reader, draw, sandbox)
    outcome = Outcome("accepted")
    with sandbox.watch():
        try:
            reader.read(draw, sandbox.source, sandbox.target)
        except UserError as error:
            problem = find_problem(str(error), sandbox if reader.names_source else None)
            detail = f"{type(error).__name__}: {problem}: {str(error)[:1000]!r}" if problem else type(error).__name__
            outcome = Outcome("finding" if problem else "rejected", detail)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            outcome = Outcome("finding", _describe(error))
    if sandbox.violations:
        outcome = Outcome("finding", f"{outcome.detail} {'; '.join(sandbox.violations[:5])}"[:3000])
    return outcome


def save_secret() -> bytes:
    return seed_masks()["grey.png"]


def _describe(error: BaseException) -> str:
    """Returns the class and the message of an error and its innermost frames."""
    frames = [
        f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"
        for frame in traceback.extract_tb(error.__traceback__)
    ]
    return f"{type(error).__name__}: {str(error)[:500]!r} at {' > '.join(frames[-6:])}"


def find_problem(message: str, sandbox: Sandbox | None) -> str:
    """Returns what is wrong with the message of an error, or an empty string."""
    first, *rest = message.split("\n")
    if not first.strip():
        return "empty message"
    if len(message) > MAX_MESSAGE:
        return f"message of {len(message)} characters"
    if CONTROL.search(message):
        return "control character in the message"
    unexpected = [line for line in rest if line and not CONTINUED.fullmatch(line)]
    if unexpected:
        return f"message of several lines: {unexpected[0][:80]!r}"
    is_about_all = first.startswith(WHOLE_SOURCE)
    if sandbox is not None and not is_about_all and not _names_file(message, sandbox):
        return "message names no file"
    return ""


def _names_file(message: str, sandbox: Sandbox) -> bool:
    if any(str(folder) in message for folder in (sandbox.source, sandbox.target, sandbox.source.parent / "outside")):
        return True
    names = {name for _, folders, files in os.walk(sandbox.source) for name in (*folders, *files)}
    names |= {PurePosixPath(name).stem for name in names}  # a sample id has no suffix
    return any(len(name) > 2 and (name in message or f"{name!a}"[1:-1] in message) for name in names)


def write_input(reader: Reader, draw: Random, sandbox: Sandbox) -> None:
    """Writes the files of a reader with one or two of them mutated; one in twelve inputs is only a changed tree."""
    files = dict(reader.files(draw))
    changed = (
        set(draw.choices(list(files), k=draw.choice((1, 1, 1, 2))))
        if not reader.has_tree or draw.random() > 0.08
        else set()
    )
    for name, content in files.items():
        path = sandbox.source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        encoded = encode(draw, name, content)
        if name in changed:
            encoded = _mutate(reader, draw, name, content, encoded, sandbox.outside)
        path.write_bytes(encoded)
    if reader.repair is not None and draw.random() < 0.8:
        reader.repair(draw, sandbox.source)
    if reader.has_tree and (not changed or draw.random() < 0.04):
        change_entry(draw, sandbox)


def encode(draw: Random, name: str, content: Content) -> bytes:
    if isinstance(content, bytes):
        return content
    if isinstance(content, str):
        return content.encode()
    if isinstance(content, pa.Table):
        return write_arrow(content) if name.endswith(".arrow") else write_parquet(draw, content)
    return encode_json(Random(0), content)


def _mutate(reader: Reader, draw: Random, name: str, content: Content, encoded: bytes, outside: Path) -> bytes:
    suffix = PurePosixPath(name).suffix.lower()
    if reader.mutations and suffix in reader.mutations:
        return reader.mutations[suffix](draw, encoded, outside)
    if isinstance(content, pa.Table):
        return hostile_table_file(draw, content, suffix)
    if isinstance(content, dict | list):
        return mutate_json(draw, content, outside)
    if isinstance(content, str):
        return mutate_text(draw, content, outside)
    if suffix in IMAGES:
        return hostile_image(draw, {**seed_images(), **seed_masks()})
    return mutate_bytes(draw, encoded)


def change_entry(draw: Random, sandbox: Sandbox) -> None:
    """Replaces, removes, links, renames or adds a file or folder of the source."""
    entries = sorted(path for path in sandbox.source.rglob("*"))
    path = draw.choice([path for path in entries if path.is_file()] * 4 + entries)
    action = draw.randrange(9)
    if action == 0 or path.is_dir():
        path.rename(path.with_name(draw.choice((f"{path.name}.bak", f".{path.name}", f"{path.stem}\n{path.suffix}"))))
    elif action == 1:
        path.unlink()
    elif action == 2:
        _link(path, draw.choice((sandbox.outside / "secret.png", sandbox.outside / "secret.json", sandbox.outside)))
    elif action == 3:
        _link(path, draw.choice((path, path.parent, Path("/dev/zero"), Path("/nonexistent"))))
    elif action == 4:
        path.unlink()
        os.mkfifo(path)
    elif action == 5:
        path.unlink()
        path.mkdir()
    elif action == 6:
        path.write_bytes(b"")
    elif action == 7:
        os.rename(path, os.fsencode(path.parent) + b"/\xff\xfe" + os.fsencode(path.suffix))  # noqa: PTH104
    else:
        other = draw.choice([entry for entry in entries if entry.is_file()])
        path.with_name(f"{path.stem}{draw.choice((other.suffix, '.png', '.txt', '.json'))}").write_bytes(
            other.read_bytes()
        )


def _link(path: Path, target: Path) -> None:
    path.unlink()
    path.symlink_to(target)


__all__ = ["Content", "Files", "Outcome", "Reader", "run_input", "save", "write_input"]
