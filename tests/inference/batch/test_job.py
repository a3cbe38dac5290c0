"""Jobs on a real cluster: every image once, and the same after a break."""

import io
import json

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from ray.exceptions import RayError

from segray.cluster.resources import WorkerResources
from segray.core.errors import DataError, SegrayError
from segray.data.images import decode_image, decode_mask, encode_mask
from segray.data.normalize import normalize_image
from segray.inference.batch import job as module
from segray.inference.batch.job import run_batch_job
from segray.inference.batch.outputs import Outputs
from segray.inference.batch.progress import SUMMARY, ChunkResult
from segray.inference.batch.sources import open_inputs
from segray.inference.batch.worker import BatchTask, segment_locally
from segray.inference.predictor import Predictor


def job(folder, source, out, on_progress=lambda *_: None, workers=2):
    predictor, inputs = Predictor(folder), open_inputs(str(source))
    work = BatchTask(predictor, inputs.are_normalized, Outputs(str(out), predictor.classes, overlay=True))
    return run_batch_job(inputs, work, {"model": "m"}, workers, "cpu", on_progress)


def files(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def steps():
    return []


@pytest.fixture(scope="module")
def whole(folder, drawn, ray_cluster, tmp_path_factory, steps):
    """The results of a job nothing happened to."""
    out = tmp_path_factory.mktemp("whole") / "out"
    job(folder, drawn, out, lambda *step: steps.append(step))
    return out


def test_every_image_becomes_a_mask_of_its_name_and_size(whole, drawn, folder, steps):
    names = [f"cam{number % 2}/deep/{number:03d}" for number in range(39) if number not in (4, 6)] + ["turned"]
    masks, overlays = [f"masks/{name}.png" for name in names], [f"overlays/{name}.jpg" for name in names]
    assert sorted(files(whole)) == sorted([SUMMARY, *masks, *overlays])
    assert steps[0] == ("segmenting", 0, 40)
    assert steps[-1] == ("segmenting", 40, 40)
    torch.set_num_threads(1)
    predictor = Predictor(folder)
    for name in ("cam0/deep/000.jpg", "cam1/deep/001.png", "turned.jpg"):
        image = decode_image(normalize_image((drawn / name).read_bytes(), name).encoded)
        mask = Image.open(whole / "masks" / f"{name.rsplit('.', 1)[0]}.png")
        assert mask.mode == "P"
        assert np.array_equal(np.asarray(mask), predictor(image))
        assert mask.getpalette()[:6] == [*predictor.classes.palette[0], *predictor.classes.palette[1]]
    assert mask.size == (40, 52)  # the one that stood on its side


def test_what_cannot_be_read_is_left_out_and_listed(whole):
    summary = json.loads((whole / SUMMARY).read_text())
    assert summary["images"] == 38
    assert [line.split(":")[0] for line in summary["problems"]] == ["cam0/deep/004", "cam0/deep/006"]
    assert "unknown format" in summary["problems"][0]


def test_a_job_that_was_broken_off_goes_on_and_ends_the_same(folder, drawn, tmp_path, whole):
    def stop(_, done, total):
        if done > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        job(folder, drawn, tmp_path / "out", stop, workers=1)
    assert not (tmp_path / "out" / SUMMARY).exists()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/masks").rglob("*.png")}
    assert len(before) >= 8
    steps = []
    job(folder, drawn, tmp_path / "out", lambda *step: steps.append(step), workers=1)
    assert steps[0][0] == "resuming"
    assert steps[0][1] >= 8
    assert steps[-1][1:] == (40, 40)
    assert sum(path.stat().st_mtime_ns != time for path, time in before.items()) <= len(before) - 8
    assert files(tmp_path / "out") == files(whole)


def end_actors():
    """Kills those of this cluster, whose processes descend from this one, and returns how many there were."""
    ours = psutil.Process().children(recursive=True)
    found = [one for one in ours if one.is_running() and "ray::MapWorker" in " ".join(one.cmdline())]
    for one in found:
        one.kill()
    return len(found)


def test_actors_that_die_are_replaced(folder, drawn, tmp_path, whole):
    killed = []

    def kill_once(_, done, total):
        if done > 0 and not killed:
            killed.append(end_actors())

    job(folder, drawn, tmp_path / "out", kill_once, workers=1)
    assert killed == [1]
    assert files(tmp_path / "out") == files(whole)


def test_a_job_whose_actors_die_again_and_again_ends(folder, drawn, tmp_path, ray_cluster, monkeypatch):
    def die(units, work, placement):
        raise RayError("a node died")
        yield

    monkeypatch.setattr(module, "_run_dataset", die)
    with pytest.raises(SegrayError, match="failed 4 times in a row, the last time with: a node died"):
        job(folder, drawn, tmp_path / "out")


def test_an_actor_that_cannot_load_the_model_names_the_reason(folder, drawn, tmp_path, ray_cluster):
    predictor, inputs = Predictor(folder), open_inputs(str(drawn))
    task = BatchTask(predictor, inputs.are_normalized, Outputs(str(tmp_path / "out"), predictor.classes))
    resources = WorkerResources(workers=1, device="cuda", threads=1, cpus=0.5, gpus=0, read_cpus=0.5)
    with pytest.raises(SegrayError, match="cannot load the model on cuda") as raised:
        list(module.segment_on_cluster(inputs, task, resources, ()))
    assert "memory" not in str(raised.value)


def test_a_table_that_breaks_meanwhile_ends_the_job(folder, tmp_path, ray_cluster):
    path = tmp_path / "some.parquet"
    pq.write_table(pa.table({"image": [encode_mask(np.zeros((40, 52), np.uint8))] * 5}), path)
    inputs, predictor = open_inputs(str(path)), Predictor(folder)
    path.write_bytes(b"none")
    work = BatchTask(predictor, inputs.are_normalized, Outputs(str(tmp_path / "out"), predictor.classes))
    with pytest.raises(DataError, match=f"{path} is not readable as parquet"):
        run_batch_job(inputs, work, {}, device="cpu")


def test_parquet_holds_the_same(folder, drawn, tmp_path):
    predictor, inputs = Predictor(folder), open_inputs(str(drawn / "cam1"))
    for form in ("png", "parquet"):
        how = {"format": form, "overlay": True, "probabilities": True}
        work = BatchTask(predictor, inputs.are_normalized, Outputs(str(tmp_path / form), predictor.classes, **how))
        assert segment_locally(inputs, work, "cpu") == ChunkResult(19)
    table = pa.concat_tables([pq.read_table(path) for path in sorted((tmp_path / "parquet").rglob("*.parquet"))])
    assert table.num_rows == 19
    for row in table.to_pylist()[::6]:
        mask = np.asarray(Image.open(tmp_path / "png/masks" / f"{row['id']}.png"))
        assert np.array_equal(decode_mask(row["mask"]), mask)
        assert (row["height"], row["width"]) == mask.shape
        probabilities = np.load(io.BytesIO(row["probabilities"]))
        assert (probabilities.shape[1:], probabilities.dtype) == (mask.shape, np.float16)
        assert np.allclose(probabilities.astype(np.float32).sum(0), 1, atol=1e-2)
        best = np.take_along_axis(probabilities, mask[None].astype(np.int64), axis=0)[0]
        assert np.array_equal(best, probabilities.max(0))
        assert (tmp_path / "png/probabilities" / f"{row['id']}.npy").read_bytes() == row["probabilities"]
        assert (tmp_path / "png/overlays" / f"{row['id']}.jpg").read_bytes() == row["overlay"]


def test_one_image_is_not_written_into_the_results_of_a_job(folder, drawn, whole):
    predictor, inputs = Predictor(folder), open_inputs(str(drawn / "turned.jpg"))
    work = BatchTask(predictor, inputs.are_normalized, Outputs(str(whole), predictor.classes))
    with pytest.raises(DataError, match="contains predictions; choose another folder"):
        segment_locally(inputs, work, "cpu")


def test_one_images_table_bears_its_name_however_long(folder, tmp_path):
    name = "ä" * 120
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / f"{name}.png")
    predictor, inputs = Predictor(folder), open_inputs(str(tmp_path / f"{name}.png"))
    for form, written in (("parquet", f"{name}.parquet"), ("png", f"masks/{name}.png")):
        work = BatchTask(predictor, inputs.are_normalized, Outputs(str(tmp_path / "out"), predictor.classes, form))
        assert segment_locally(inputs, work, "cpu") == ChunkResult(1)
        assert (tmp_path / "out" / written).exists()


def test_an_error_of_the_device_ends_the_job_and_a_repeat_goes_on(folder, drawn, tmp_path, whole):
    """CUDA repeats such an error at every later call, so that all other images would fail as well."""
    predictor, inputs, repaired = Predictor(folder), open_inputs(str(drawn)), tmp_path / "repaired"
    calls = []

    def fail_from_the_third_call(*_):
        calls.append(1)
        if len(calls) > 2 and not repaired.exists():
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    predictor._model.register_forward_pre_hook(fail_from_the_third_call)
    work = BatchTask(predictor, inputs.are_normalized, Outputs(str(tmp_path / "out"), predictor.classes, overlay=True))
    with pytest.raises(SegrayError, match=r"(?s)cam\d/deep/\d+ cannot be segmented.*CUDA error.*same command") as ended:
        run_batch_job(inputs, work, {"model": "m"}, 1, "cpu")
    assert not isinstance(ended.value, DataError)
    assert not (tmp_path / "out" / SUMMARY).exists()
    assert not list((tmp_path / "out").rglob("done/*.json"))
    repaired.touch()
    run_batch_job(inputs, work, {"model": "m"}, 1, "cpu")
    assert files(tmp_path / "out") == files(whole)


def test_a_prepared_dataset_is_segmented_as_it_is(folder, streets, tmp_path):
    predictor, inputs = Predictor(folder), open_inputs(str(streets), "val")
    work = BatchTask(predictor, inputs.are_normalized, Outputs(str(tmp_path / "out"), predictor.classes))
    assert segment_locally(inputs, work, "cpu") == ChunkResult(7)
    assert len(list((tmp_path / "out/masks/val").iterdir())) == 7
