"""`segray.Predictor`: a model by any of its names."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from mlflow.tracking import MlflowClient

import segray
from segray.core.errors import CapacityError, DataError, RegistryError
from segray.inference import predictor
from segray.tracking.registry import register_checkpoint


def test_a_predictor_of_a_folder_and_of_the_registered_model_do_the_same(folder, empty_store, tmp_path):
    store = tmp_path / "mlflow.db"
    store.write_bytes(empty_store.read_bytes())
    uri = f"sqlite:///{store}"
    client = MlflowClient(uri, uri)
    experiment = client.create_experiment("some", (tmp_path / "artifacts").as_uri())
    run = client.create_run(experiment).info.run_id
    register_checkpoint(client, run, folder, "streets", ["champion"])
    image = np.random.default_rng(0).integers(0, 256, (45, 70, 3), dtype=np.uint8)
    mask = predictor.Predictor(folder)(image)
    assert mask.shape == (45, 70)
    assert np.array_equal(segray.Predictor(folder)(image), mask)
    assert np.array_equal(segray.Predictor("models:/streets@champion", tracking_uri=uri)(image), mask)
    with pytest.raises(RegistryError, match="challenger"):
        segray.Predictor("models:/streets@challenger", tracking_uri=uri)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((45, 70), np.uint8),
        np.zeros((45, 70, 4), np.uint8),
        np.zeros((45, 70, 3), np.float32),
        np.zeros((0, 70, 3), np.uint8),
    ],
)
def test_what_is_no_rgb_image_is_refused(folder, image):
    with pytest.raises(DataError, match=r"expected uint8 \(H, W, 3\), RGB"):
        segray.Predictor(folder)(image)


def test_an_image_is_refused_where_it_would_be_seen_as_millions_of_pixels(folder):
    model = segray.Predictor(folder)
    model.config = model.config.model_copy(
        update={"data": model.config.data.model_copy(update={"short_side": 5000}), "eval": model.config.eval}
    )
    with pytest.raises(DataError, match="the image is 80x80; data.short_side 5000 .* enlarge it to 5056x5056"):
        model(np.zeros((80, 80, 3), np.uint8))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_told(folder):
    with pytest.raises(CapacityError, match="torch finds no GPU here"):
        segray.Predictor(folder, device="cuda")


def test_one_pixel_is_an_image(folder):
    assert segray.Predictor(folder)(np.zeros((1, 1, 3), np.uint8)).shape == (1, 1)


def test_the_package_itself_imports_no_torch_and_knows_no_other_name():
    code = "import sys, segray; assert 'torch' not in sys.modules; print(hasattr(segray, 'Segmenter'))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
