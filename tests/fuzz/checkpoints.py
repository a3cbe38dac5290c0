"""Readers of checkpoints, weight files, settings and journals."""

import hashlib
import io
import json
import math
import os
import pickle
import zipfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from rich.console import Console
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from segray import config
from segray.cli.progress import TrainingProgress
from segray.core.classes import Classes
from segray.inference.predictor import Predictor
from segray.models import checkpoint
from segray.models.build import build_model
from segray.models.weights.load import load_pretrained
from segray.tracking.evaluations import _training_run_id
from segray.tracking.journal import Journal
from segray.tracking.uploader import RunUploader
from segray.training import checkpoint_store, resume, runs
from segray.tune.journal import SweepJournal
from segray.tune.setup import _read_start

from .images import rgb_pixels
from .mutations import hostile_value, mutate_bytes, mutate_json, mutate_tree
from .reader import Files, Reader

ENCODER = f"{__name__}:TinyEncoder"
SETTINGS = {"model.encoder": ENCODER, "data.crop": 64}
CLASSES = Classes.from_names(["road", "car", "sky"])


class TinyEncoder(nn.Module):
    """Encoder whose weights take a few kilobytes."""

    dims, strides = (4, 8, 16, 32), (4, 8, 16, 32)

    def __init__(self, drop_path: float) -> None:
        super().__init__()
        del drop_path
        self.stages = nn.ModuleList(nn.Conv2d(3, dim, 1) for dim in self.dims)

    def forward(self, image: Tensor) -> list[Tensor]:
        sizes = [[math.ceil(side / stride) for side in image.shape[2:]] for stride in self.strides]
        return [stage(F.adaptive_avg_pool2d(image, size)) for stage, size in zip(self.stages, sizes, strict=True)]


@lru_cache(maxsize=1)
def checkpoint_content() -> dict[str, bytes]:
    torch.manual_seed(0)
    settings = config.build(SETTINGS)
    model = build_model(settings, CLASSES)
    meta = checkpoint.Meta(step=7, metrics={"val/miou": 0.5}, dataset_digest="d1", versions={"torch": "2"})
    state = {"optim": {"state": {0: {"step": torch.tensor(1.0)}}, "lr": [0.1]}, "step": 7}
    with TemporaryDirectory() as folder:
        checkpoint.snapshot(model, state, settings, CLASSES, meta).write(Path(folder))
        return {file.name: file.read_bytes() for file in sorted(Path(folder).iterdir())}


def checkpoint_files(_draw: Random) -> Files:
    return {name: json.loads(data) if name.endswith(".json") else data for name, data in checkpoint_content().items()}


def repair_meta(draw: Random, folder: Path) -> None:
    """Writes the current sizes and checksums to meta.json, if it is still valid.

    One in eight inputs keeps the checksums, which then refuse the damaged file, and one in eight has none, as a
    checkpoint of an earlier version.
    """
    choice = draw.random()
    try:
        meta = json.loads((folder / "meta.json").read_bytes())
        meta["files"] = {name: (folder / name).stat().st_size for name in meta["files"]}
        if choice < 0.125:
            del meta["checksums"]
        elif choice < 0.875:
            names = meta["checksums"]
            meta["checksums"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
        (folder / "meta.json").write_text(json.dumps(meta))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return


def read_checkpoint(draw: Random, source: Path, _target: Path) -> None:
    actions: list[Callable[[], object]] = [
        lambda: checkpoint.verify_checksums(source, checkpoint.load_meta(source)),
        lambda: checkpoint.load_config(source),
        lambda: checkpoint.load_classes(source),
        lambda: checkpoint.load_state(source),
        lambda: checkpoint.load_weights(source, live=True),
        lambda: checkpoint_store.list_checkpoints(source.parent),
        lambda: Predictor(source)(rgb_pixels()),
    ]
    draw.shuffle(actions)
    for action in actions:
        action()


class Command:
    """Object whose unpickling calls a function."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self._call


def hostile_object(draw: Random, outside: Path) -> Any:
    """Returns an object that is no state dict, or one that runs a command when it is unpickled."""
    recursive: dict[str, Any] = {}
    recursive["state_dict"] = recursive
    commands = (
        Command(os.system, f"touch {outside}/executed"),
        Command(eval, f"open({str(outside / 'executed')!r}, 'w')"),
        Command(os.mkdir, str(outside / "executed")),
        Command(exec, "import os; os.abort()"),
        Command(torch.load, str(outside / "secret.txt")),
    )
    others = (
        *(recursive, [1, 2], 3, None, {}, {1: torch.ones(2)}, {None: torch.ones(1)}, torch.ones(2), nn.Linear(1, 1)),
        *({"a": torch.ones(2), "b": draw.choice(commands)}, {"state_dict": {"x": [torch.ones(1)]}}, {"model": "text"}),
    )
    return draw.choice((*commands, *others))


def hostile_tensors(draw: Random) -> dict[str, Any]:
    """Returns the tensors of the model with some of another kind, type, shape or name."""
    tensors = dict(torch.load(io.BytesIO(pickled_weights())))
    for key in draw.sample(sorted(tensors), 2):
        value = tensors.pop(key)
        kinds: tuple[Callable[[], Any], ...] = (
            lambda: torch.zeros(1).expand(10**12),
            lambda: torch.sparse_coo_tensor(size=(2, 2)),
            lambda: torch.zeros(3, device="meta"),
            lambda: torch.zeros(0),
            lambda value=value: value.to(torch.complex64),
            lambda value=value: value.double() * float("nan"),
            lambda value=value: value[None],
            lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8),
            lambda: torch.ones(2, dtype=torch.bool),
            lambda: "text",
        )
        tensors[draw.choice((key, key, f"module.{key}", "", "x" * 10_000, "a\0b", 3))] = draw.choice(kinds)()
    return tensors


@lru_cache(maxsize=1)
def pickled_weights() -> bytes:
    buffer = io.BytesIO()
    torch.save(build_model(config.build(SETTINGS), CLASSES).state_dict(), buffer)
    return buffer.getvalue()


def hostile_pickle(draw: Random, data: bytes, outside: Path) -> bytes:
    choice = draw.random()
    if choice < 0.3:
        return mutate_bytes(draw, data)
    buffer = io.BytesIO()
    content = hostile_object(draw, outside) if choice < 0.7 else hostile_tensors(draw)
    if choice < 0.9:
        torch.save(content, buffer, _use_new_zipfile_serialization=draw.random() < 0.7)
    elif choice < 0.95:
        pickle.dump(hostile_object(draw, outside), buffer)
    else:  # a compressed archive that expands to 256 MiB
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", bytes(2**25))
            archive.writestr("archive/version", "3")
    return buffer.getvalue()


def hostile_safetensors(draw: Random, data: bytes, outside: Path) -> bytes:
    """Returns a safetensors file with an edited header, or damaged bytes."""
    if draw.random() < 0.3:
        return mutate_bytes(draw, data)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    name = draw.choice([key for key in header if key != "__metadata__"])
    action = draw.randrange(5)
    if action == 0:
        header[name]["data_offsets"] = draw.choice(([0, 0], [0, 2**63], [-4, 0], [4, 0], [0, 1], [1.5, 2], ["0", "4"]))
    elif action == 1:
        header[name]["shape"] = draw.choice(([2**32, 2**32], [0], [-1], [2**63], [1] * 1000, [], ["1"]))
    elif action == 2:
        header[name]["dtype"] = draw.choice(("F64", "BOOL", "F8_E4M3", "I8", "U64", "C64", "X", "", None))
    elif action == 3:
        header = mutate_tree(draw, header, outside)
    else:
        header[draw.choice(("", "a\0b", "__metadata__", "x" * 5000, "../../x"))] = draw.choice(
            (header[name], {}, {"a": 1}, None)
        )
    encoded = json.dumps(header).encode("utf-8", "surrogatepass")
    stated = draw.choice((len(encoded),) * 6 + (0, len(encoded) - 1, 2**40, 2**63))
    return stated.to_bytes(8, "little") + encoded + data[8 + length :]


def weights_files(draw: Random) -> Files:
    model = {"weights.pth": pickled_weights()}
    if draw.random() < 0.5:
        return model
    tensors = torch.load(io.BytesIO(pickled_weights()))
    return {"model.safetensors": save_safetensors(tensors)}


def read_weights(draw: Random, source: Path, _target: Path) -> None:
    path = next((source / name for name in ("weights.pth", "model.safetensors") if (source / name).exists()), source)
    load_pretrained(
        build_model(config.build(SETTINGS), CLASSES),
        draw.choice((path, source / path.name)),
        part=draw.choice(("model", "auto", "encoder")),
    )


YAML_TRICKS = (
    "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefg", "bcdefgh", strict=True)),
    "data: &a\n  root: *a\n",
    "[" * 5000,
    "data: {root: !!python/object/apply:os.system ['touch executed']}",
    "data: {crop: 2001-99-99}",
    "optim: {lr: 190:20:30.15}",
    "train: {steps: " + "9" * 5000 + "}",
    "? [a, b]\n: 1",
    "<<: [data, 1]",
    "data: !!binary '%%%'",
    "data: !!set {root, crop}",
    "data: !!omap [a: 1]",
    "optim: {lr: .inf}",
    "\t- x",
    "data:\n  augment: [" + "{OneOf: {transforms: [" * 60 + "]}}" * 60 + "]",
    "%YAML 9.9\n---\na: 1",
    "a: 1\n---\nb: 2",
)


def settings_files(draw: Random) -> Files:
    if draw.random() < 0.15:
        return {"settings.yaml": draw.choice(YAML_TRICKS)}
    tree = config.build({"data.crop": 64, "tune.space": {"optim.lr": {"loguniform": [1e-5, 1e-3]}}}).model_dump(
        mode="json"
    )
    section = draw.choice(list(tree))
    return {"settings.yaml": yaml.safe_dump({section: tree[section]})}


def mutate_settings(draw: Random, data: bytes, outside: Path) -> bytes:
    if draw.random() < 0.3 or data.decode() in YAML_TRICKS:
        return mutate_bytes(draw, data) if draw.random() < 0.5 else data
    tree = mutate_tree(draw, yaml.safe_load(data), outside)
    try:
        return yaml.safe_dump(tree).encode("utf-8", "surrogatepass")
    except (yaml.YAMLError, RecursionError):
        return json.dumps(tree).encode("utf-8", "surrogatepass")


def read_settings(_draw: Random, source: Path, _target: Path) -> None:
    config.load([source / "settings.yaml"])


def journal_records(draw: Random, is_sweep: bool) -> list[dict[str, Any]]:
    digest = {"digest": "d1", "classes": ["road", "car", "sky"]}
    records: list[dict[str, Any]] = [
        {
            "kind": "run",
            "key": "k1",
            "name": "run",
            "experiment": "e",
            "dataset": digest,
            "tags": {},
            "params": {},
            "known": [[{"optim.lr": 1e-3}, {"val/miou": 0.1}]],
        }
    ]
    if is_sweep:
        records += [{"kind": "trial", "number": number, "values": {"optim.lr": 1e-3}} for number in range(2)]
        became = {"why": "", "values": {"optim.lr": 1e-3}, "copies": None, "step": 2, "costs": {}, "seconds": 1.5}
        records += [
            {"kind": "became", "number": number, "state": state, **became}
            for number, state in enumerate(("running", "paused"))
        ]
    values = {"train/loss": 0.5, "train/lr": 1e-3, "train/images_per_s": 3.0, "train/data_wait": 0.1}
    records += [
        {"kind": "metrics", "step": step, "values": values | ({"val/miou": 0.4, "val/aacc": 0.5} if step % 2 else {})}
        for step in range(1, 4)
    ]
    records += [
        {"kind": "rewound", "step": 2},
        {"kind": "event", "text": "worker lost"},
        {"kind": "resumed", "dataset": digest},
    ]
    records += [{"kind": "end", "status": draw.choice(("FINISHED", "FAILED"))}] * (draw.random() < 0.5)
    return [{"time_ms": 1_700_000_000_000 + index, **record} for index, record in enumerate(records)]


def to_lines(records: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def run_files(draw: Random) -> Files:
    settings = json.loads(checkpoint_content()["config.json"])
    files: dict[str, Any] = {"run/config.json": settings, "run/journal.jsonl": to_lines(journal_records(draw, False))}
    files["run/uploaded.json"] = {"uri": "sqlite:///x.db", "offset": 10, "run_id": "r1", "version": None}
    files["sweep/config.json"] = settings | {
        "tune": settings["tune"] | {"space": {"optim.lr": {"loguniform": [1e-5, 1e-2]}}}
    }
    files["sweep/journal.jsonl"] = to_lines(journal_records(draw, True))
    files["sweep/trial-000/journal.jsonl"] = to_lines(journal_records(draw, False))
    return files


def mutate_journal(draw: Random, data: bytes, outside: Path) -> bytes:
    lines = data.splitlines()
    for row in draw.sample(range(len(lines)), min(len(lines), draw.choice((1, 1, 2)))):
        choices = (
            mutate_json(draw, json.loads(lines[row]), outside),
            b"",
            json.dumps(hostile_value(draw, outside)).encode("utf-8", "surrogatepass"),
        )
        lines[row] = draw.choice((choices[0], *choices))
    if draw.random() < 0.2:
        draw.shuffle(lines)
    return b"\n".join(lines) + draw.choice((b"\n", b""))


def read_run(draw: Random, source: Path, _target: Path) -> None:
    run, sweep = source / "run", source / "sweep"
    actions: list[Callable[[], object]] = [
        lambda: Journal(run).last_step(),
        lambda: runs.is_finished(run),
        lambda: resume.require_resumable(resume.resolve_run(str(run)), str(run)),
        lambda: SweepJournal(sweep, ("val/miou",)).load_trials(),
        lambda: _read_start(SweepJournal(sweep, ("val/miou",))),
        lambda: resume._dataset_digest(run),
        lambda: _training_run_id("sqlite:///x.db", str(run / "step-000001"), run / "step-000001"),
        lambda: RunUploader(run, "sqlite:///x.db"),
        lambda: follow(run),
    ]
    draw.shuffle(actions)
    for action in actions:
        action()


def follow(run: Path) -> None:
    """Shows the journal of a run as the terminal does."""
    with Path(os.devnull).open("w") as nowhere, TrainingProgress(Console(file=nowhere), 10) as progress:
        progress.follow(run)


READERS = {
    "checkpoint": Reader(
        checkpoint_files,
        read_checkpoint,
        6,
        repair=repair_meta,
        follows_links=True,
        mutations={".safetensors": hostile_safetensors, ".pt": hostile_pickle},
    ),
    "weights": Reader(
        weights_files,
        read_weights,
        4,
        mutations={".safetensors": hostile_safetensors, ".pth": hostile_pickle},
        follows_links=True,
    ),
    "settings": Reader(
        settings_files, read_settings, 8, mutations={".yaml": mutate_settings}, has_tree=False, names_source=False
    ),
    "run": Reader(run_files, read_run, 6, mutations={".jsonl": mutate_journal}, follows_links=True),
}
