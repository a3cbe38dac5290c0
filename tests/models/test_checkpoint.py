"""A checkpoint is whole or refused, and brings the same model back without a pickle."""

import json
import subprocess

import pytest
import torch

from segray import config
from segray.core.classes import Classes
from segray.core.errors import CheckpointError
from segray.models import checkpoint
from segray.models.build import build_model
from segray.training.engine.optim import build_optimizer, optimizer_state_by_name

CLASSES = Classes.from_names(["road", "car", "sky"])
CONFIG = config.build({"model.variant": "b0", "data.short_side": 64})
META = checkpoint.Meta(
    step=7,
    metrics={"val/miou": 0.5},
    confusion=[[1, 0], [0, 1]],
    dataset_digest="d",
    versions=checkpoint.library_versions(),
)


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = build_model(CONFIG, CLASSES)
    optimiser = build_optimizer(model, CONFIG.optim)
    model(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))["seg"].sum().backward()
    optimiser.step()
    checkpoint.snapshot(model, {"moments": optimizer_state_by_name(optimiser, model)}, CONFIG, CLASSES, META).write(
        tmp_path
    )
    return tmp_path, model, optimiser


def forget_checksums(folder):
    """Makes the checkpoint one from before the checksums, so that its files may be changed."""
    meta = checkpoint.load_meta(folder).model_copy(update={"checksums": {}})
    (folder / checkpoint.META).write_text(meta.model_dump_json())


def test_everything_comes_back(saved):
    folder, model, optimiser = saved
    loaded = checkpoint.load_model(folder)
    images = torch.randint(0, 256, (1, 3, 50, 70), dtype=torch.uint8)
    assert torch.equal(loaded(images)["seg"], model.eval()(images)["seg"])
    assert not loaded.training
    files = {file.name: file.stat().st_size for file in folder.iterdir() if file.name != checkpoint.META}
    meta = checkpoint.load_meta(folder)
    assert meta == META.model_copy(update={"files": files, "checksums": meta.checksums})
    assert checkpoint.load_config(folder) == CONFIG
    assert checkpoint.load_classes(folder) == CLASSES
    (name, parameter), *_ = model.named_parameters()
    assert torch.equal(checkpoint.load_state(folder)["moments"][name]["exp_avg"], optimiser.state[parameter]["exp_avg"])


def test_a_config_with_earlier_names_of_settings_is_read(saved):
    folder, model, _ = saved
    file = folder / checkpoint.CONFIG
    forget_checksums(folder)
    tree = json.loads(file.read_text())
    tree["eval"]["align"] = tree["eval"].pop("size_multiple")
    tree["eval"]["precision"] = "float32"
    tree["model"]["checkpointing"] = tree["model"].pop("activation_checkpointing")
    file.write_text(json.dumps(tree))
    assert checkpoint.load_config(folder) == CONFIG
    loaded = checkpoint.load_model(folder).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("part", [checkpoint.META, checkpoint.WEIGHTS, checkpoint.CONFIG, checkpoint.CLASSES])
def test_a_folder_that_lacks_a_part_is_refused_by_its_name(saved, part):
    folder, *_ = saved
    (folder / part).unlink()
    with pytest.raises(CheckpointError, match=part):
        checkpoint.load_model(folder)


@pytest.mark.parametrize("part", [checkpoint.META, checkpoint.WEIGHTS, checkpoint.CONFIG])
def test_a_part_that_was_cut_short_is_refused_by_its_name(saved, part):
    folder, *_ = saved
    content = (folder / part).read_bytes()
    (folder / part).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=part):
        checkpoint.load_model(folder)


def test_weights_of_another_variant_are_refused(saved):
    folder, *_ = saved
    other = CONFIG.model_copy(update={"model": CONFIG.model.model_copy(update={"variant": "b1"})})
    forget_checksums(folder)
    (folder / checkpoint.CONFIG).write_text(other.model_dump_json())
    with pytest.raises(CheckpointError, match=r"does not match its config\.json"):
        checkpoint.load_model(folder)


def test_what_is_no_folder_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is not a folder"):
        checkpoint.load_meta(tmp_path / "gone")


@pytest.mark.parametrize("content", [b"", b"no zip", b"\x80\x02}q\x00."])
def test_a_training_state_that_is_none_is_refused_by_its_name(saved, content):
    folder, *_ = saved
    (folder / checkpoint.STATE).write_bytes(content)
    with pytest.raises(CheckpointError, match=checkpoint.STATE):
        checkpoint.load_state(folder)


@pytest.mark.parametrize(
    "content", [b"\xff\xfe\x00", META.model_dump_json().replace('"format":2', '"format":99').encode()]
)
def test_a_folder_that_says_nothing_known_of_itself_is_refused(saved, content):
    folder, *_ = saved
    (folder / checkpoint.META).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"meta\.json is damaged or has another format version"):
        checkpoint.load_meta(folder)


def test_a_folder_is_whole_while_every_file_has_its_size(saved):
    folder, *_ = saved
    meta = checkpoint.load_meta(folder)
    checkpoint.verify_files(folder, meta)
    assert set(meta.files) == {checkpoint.WEIGHTS, checkpoint.STATE, checkpoint.CONFIG, checkpoint.CLASSES}
    with (folder / checkpoint.STATE).open("ab") as file:
        file.write(b"x")
    with pytest.raises(CheckpointError, match=r"state\.pt has \d+ bytes; expected \d+; the checkpoint is damaged"):
        checkpoint.verify_files(folder, meta)
    (folder / checkpoint.STATE).unlink()
    with pytest.raises(CheckpointError, match=r"state\.pt is missing; the checkpoint is damaged"):
        checkpoint.verify_files(folder, meta)


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


LOADERS = {
    checkpoint.WEIGHTS: checkpoint.load_weights,
    checkpoint.STATE: checkpoint.load_state,
    checkpoint.CONFIG: checkpoint.load_config,
    checkpoint.CLASSES: checkpoint.load_classes,
}


@pytest.mark.parametrize("part", LOADERS)
def test_a_flipped_bit_is_found_when_the_file_is_loaded(saved, part):
    folder, *_ = saved
    checkpoint.verify_checksums(folder, checkpoint.load_meta(folder))
    flip_a_bit(folder / part)
    meta = checkpoint.load_meta(folder)
    checkpoint.verify_files(folder, meta)  # the listing of a run stays cheap
    said = rf"{part} has the SHA-256 checksum .*the checkpoint is damaged: restore the file from a copy, or use another"
    with pytest.raises(CheckpointError, match=said):
        LOADERS[part](folder)
    with pytest.raises(CheckpointError, match=said):
        checkpoint.verify_checksums(folder, meta)


def test_a_checkpoint_from_before_the_checksums_is_loaded(saved):
    folder, model, _ = saved
    tree = json.loads((folder / checkpoint.META).read_text())
    del tree["checksums"]
    (folder / checkpoint.META).write_text(json.dumps(tree))
    assert checkpoint.load_model(folder).state_dict().keys() == model.state_dict().keys()
    checkpoint.verify_checksums(folder, checkpoint.load_meta(folder))


def test_the_checksums_are_those_of_sha256sum(saved):
    folder, *_ = saved
    listed = subprocess.run(
        ["sha256sum", *checkpoint.load_meta(folder).files], cwd=folder, capture_output=True, text=True, check=True
    )
    expected = {line.split()[1]: line.split()[0] for line in listed.stdout.splitlines()}
    assert checkpoint.load_meta(folder).checksums == expected


def test_the_folder_of_a_run_names_its_last_checkpoint(tmp_path):
    for name in ("step-000200", "step-000400"):
        (tmp_path / name).mkdir()
        (tmp_path / name / checkpoint.META).write_text("{}")
    with pytest.raises(CheckpointError, match=r"choose one of the checkpoints in it, for example .*/step-000400\.$"):
        checkpoint.load_meta(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="it is not a checkpoint"):
        checkpoint.load_meta(tmp_path / "empty")
