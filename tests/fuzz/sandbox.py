"""Folder of one input, and the checks that a reader changes nothing but its target.

source   the bytes of a stranger
target   the only folder in which a reader may leave files
outside  files that no reader may read or change
tmp      the folder of temporary files, which a reader must leave empty
work     the working folder
"""

import hashlib
import os
import shutil
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
PATH_EVENTS = {
    *("os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown"),
    *("shutil.rmtree", "shutil.move", "shutil.copyfile", "os.mkfifo", "os.setxattr"),
}
FORBIDDEN_EVENTS = {
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "subprocess.Popen",
    "os.fork",
    "socket.connect",
}
LOOPBACK = "127.0.0.1"
DEVICES = ("/dev/null", "/dev/urandom", "/proc/", "/sys/")


class Sandbox:
    """Folders of one input.

    Args:
        root: folder to create.
        may_read_outside: `True` if the reader follows links by design.
    """

    def __init__(self, root: Path, may_read_outside: bool = False) -> None:
        self.root, self._may_read_outside = root, may_read_outside
        shutil.rmtree(root, ignore_errors=True)
        names = ("source", "target", "outside", "tmp", "work")
        self.source, self.target, self.outside, self.tmp, self.work = (root / name for name in names)
        for folder in (self.source, self.target, self.outside, self.tmp, self.work):
            folder.mkdir(parents=True)
        (self.outside / "secret.json").write_text("{}")
        (self.outside / "secret.txt").write_text("secret\n")
        self.violations: list[str] = []

    def add_secret(self, name: str, content: bytes) -> None:
        (self.outside / name).write_bytes(content)

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Runs a reader and records forbidden operations, unhandled errors of threads, and changed files."""
        before, old_work = self._snapshot(), Path.cwd()
        old_tmp, old_hook = tempfile.tempdir, threading.excepthook
        known_threads = {thread.ident for thread in threading.enumerate()} - {threading.get_ident()}
        tempfile.tempdir = str(self.tmp)
        threading.excepthook = lambda args: self.violations.append(
            f"thread: {args.exc_type.__name__}: {args.exc_value}"
        )
        os.chdir(self.work)
        _install_hook()
        _ACTIVE.append((self, known_threads))
        try:
            yield
        finally:
            _ACTIVE.clear()
            os.chdir(old_work)
            tempfile.tempdir, threading.excepthook = old_tmp, old_hook
        after = self._snapshot()
        for name in sorted(before.keys() | after.keys()):
            if before.get(name) != after.get(name):
                change = "created" if name not in before else "removed" if name not in after else "changed"
                self.violations.append(f"{change} {name}")

    def remove(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    def check_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Records an operation on a file outside the target, or a started process or connection."""
        if event == "socket.connect" and arguments[1][0] == LOOPBACK:
            return
        if event in FORBIDDEN_EVENTS:
            self.violations.append(f"{event} {str(arguments[:2])[:200]}")
        elif event == "open":
            path, _, flags = arguments
            self._check_path(path, isinstance(flags, int) and bool(flags & WRITE_FLAGS), event)
        elif event in PATH_EVENTS:
            is_pair = event in {"os.rename", "os.link", "os.symlink", "shutil.move", "shutil.copyfile"}
            for path in arguments[1:2] if is_pair else arguments[:1]:
                self._check_path(path, True, event)

    def _check_path(self, path: object, is_write: bool, event: str) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return
        text = os.path.realpath(os.fsdecode(path)) if "\0" not in os.fsdecode(path) else ""
        root = os.path.realpath(self.root)
        if is_write and text and not text.startswith((f"{root}/target", f"{root}/tmp", *DEVICES)):
            self.violations.append(f"{event} writes {text[:300]}")
        if not is_write and text.startswith(f"{root}/outside") and not self._may_read_outside:
            self.violations.append(f"{event} reads {text[:300]}")

    def _snapshot(self) -> dict[str, tuple[int, str]]:
        """Returns kind and content hash of every file except those in the target."""
        files: dict[str, tuple[int, str]] = {}
        for folder, folders, names in os.walk(self.root):
            if Path(folder) == self.root:
                folders.remove("target")
            for name in (*folders, *names):
                path = Path(folder, name)
                status = path.lstat()
                content = str(status.st_size)
                if stat.S_ISLNK(status.st_mode):
                    content = os.readlink(path)  # noqa: PTH115 - the target may be no valid Path
                elif stat.S_ISREG(status.st_mode):
                    content = hashlib.blake2b(path.read_bytes()).hexdigest()
                elif stat.S_ISDIR(status.st_mode):
                    content = ""
                files[str(path.relative_to(self.root))] = (stat.S_IFMT(status.st_mode), content)
        return files


_ACTIVE: list[tuple[Sandbox, set[int | None]]] = []
_INSTALLED: list[bool] = []


def _install_hook() -> None:
    if not _INSTALLED:  # Python offers no way to remove a hook
        _INSTALLED.append(True)
        sys.addaudithook(_audit)


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _ACTIVE and (event == "open" or event in PATH_EVENTS or event in FORBIDDEN_EVENTS):
        sandbox, known_threads = _ACTIVE[0]
        if threading.get_ident() not in known_threads:  # threads that ran before do not belong to the reader
            sandbox.check_event(event, arguments)
