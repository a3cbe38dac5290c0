"""A registry with versions to serve, and controller, replica and gateway without a cluster."""

import asyncio
import io
import json
import shutil
from contextlib import asynccontextmanager
from hashlib import sha256
from socket import create_server

import httpx
import numpy as np
import pytest
import torch
from mlflow.tracking import MlflowClient
from PIL import Image

from segray import config
from segray.config import ServeConfig
from segray.data.images import decode_image, decode_mask
from segray.data.sources import demo
from segray.inference.predictor import Predictor
from segray.models import checkpoint
from segray.models.build import build_model
from segray.serving.controller import VersionController
from segray.serving.gateway import Gateway
from segray.serving.model_cache import ModelCache
from segray.serving.replica import Replica
from segray.serving.requests import ResponseOptions
from segray.serving.routes import build_app
from segray.serving.server import running_server
from segray.tracking.integrity import integrity_tags
from segray.tracking.registry import register_checkpoint

MODEL = "streets"
TOKEN = "a-token-of-thirty-two-characters"
KNOWN = {"Content-Type": "image/jpeg", "Authorization": f"Bearer {TOKEN}"}


class Store:
    """A registry with some versions, and the mask of each for an image."""

    def __init__(self, folder, empty_store):
        folder.mkdir(exist_ok=True)
        database = folder / "mlflow.db"
        database.write_bytes(empty_store.read_bytes())
        self.uri = f"sqlite:///{database}"
        self.client, self.folder = MlflowClient(self.uri, self.uri), folder
        self._experiment = self.client.create_experiment("serving", str(folder / "artifacts"))
        self._predictors, self._folders = {}, {}

    def add(self, seed, *aliases):
        """Registers a version drawn with a seed, and returns its number."""
        torch.manual_seed(seed)
        settings, classes = config.build({"data.crop": 64}), demo.demo_classes()
        model = build_model(settings, classes)
        folder = self.folder / f"checkpoint-{len(self._predictors)}"
        folder.mkdir()
        meta = checkpoint.Meta(step=7, metrics={"val/miou": 0.5}, dataset_digest="d1", versions={})
        checkpoint.snapshot(model, {}, settings, classes, meta).write(folder)
        run_id = self.client.create_run(self._experiment).info.run_id
        number = register_checkpoint(self.client, run_id, folder, MODEL, list(aliases))
        self._predictors[number], self._folders[number] = Predictor(folder), folder
        return number

    def set(self, alias, number):
        self.client.set_registered_model_alias(MODEL, alias, number)

    def mask(self, number, encoded):
        """The mask of the Predictor of a version for an encoded image."""
        return self._predictors[number](decode_image(encoded))

    def sliding_mask(self, number, encoded):
        """The mask with sliding windows."""
        folder = self._folders[number]
        settings = checkpoint.load_config(folder).with_eval_overrides({"mode": "slide"})
        return Predictor(folder, config=settings)(decode_image(encoded))

    @property
    def artifacts(self):
        return self.folder / "artifacts"


@pytest.fixture(scope="session")
def registered(tmp_path_factory, empty_store):
    """A registry with two versions, shared by all tests."""
    registered = Store(tmp_path_factory.mktemp("registry"), empty_store)
    registered.add(0)
    registered.add(1)
    return registered


@pytest.fixture
def store(registered):
    """The registry with champion 1, challenger 2 and an empty model cache."""
    registered.set("champion", "1")
    registered.set("challenger", "2")
    shutil.rmtree(registered.folder / "served", ignore_errors=True)
    return registered


def picture(height=48, width=80, seed=0, kind="JPEG"):
    """The bytes of an image of soft noise."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 10, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(buffer, kind)
    return buffer.getvalue()


async def segment(replica, body, options=None, client="test"):
    """The response of a replica."""
    responses = [response async for response in replica.segment(body, options or ResponseOptions(), client)]
    assert len(responses) == 1 or responses[0] is None  # refused, or the computation has begun
    return responses[-1]


async def mask(serving, body):
    """The version that answers a request, and its mask."""
    response = await segment(serving.replica, body)
    return response.version, decode_mask(response.body)


def weights_file(store, number):
    """The stored weights of a version."""
    source = store.client.get_model_version(MODEL, number).run_id
    return next(store.artifacts.glob(f"{source}/**/{checkpoint.WEIGHTS}"))


def damaged_version(store, damage):
    """The number of a version that cannot be served."""
    number = store.add(3)
    file = weights_file(store, number)
    if damage == "cut off":
        file.write_bytes(file.read_bytes()[:1000])
    elif damage == "gone":
        shutil.rmtree(file.parent)
    elif damage == "of other bytes":
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    elif damage == "of another variant":
        settings = file.with_name("config.json")
        settings.write_text(settings.read_text().replace('"variant": "b0"', '"variant": "b1"'))
        meta = json.loads(file.with_name(checkpoint.META).read_text())
        meta["checksums"] = {}  # as in a checkpoint of an earlier version
        file.with_name(checkpoint.META).write_text(json.dumps(meta))
        for key, value in integrity_tags(file.parents[2]).items():
            store.client.set_model_version_tag(MODEL, number, key, value)
    return number


class LocalServing:
    """A controller, a replica and a gateway in this process, and a client of them."""

    def __init__(self, store, settings, token=None):
        self.store, self.settings = store, settings
        self.controller = VersionController(settings, ModelCache(MODEL, store.uri, store.folder / "served"))
        self.replica = Replica(settings, "cpu", self.controller, "r1")
        self.gateway = Gateway(settings, self.replica, self.controller, token and sha256(token.encode()).digest(), "f1")

    async def ready(self):
        await self.controller.start()
        await self.replica.start()
        self.gateway.start()

    async def until(self, predicate, seconds=10):
        """Waits until a predicate holds for the state, and returns the state."""
        async with asyncio.timeout(seconds):
            while not predicate(state := await self.controller.state()):
                await asyncio.sleep(0.02)
        return state


@asynccontextmanager
async def served(store, token=None, **settings):
    """A ready LocalServing with `client`, an HTTP client."""
    serving = LocalServing(store, ServeConfig(poll_s=0.05, **settings), token)
    await serving.ready()
    transport = httpx.ASGITransport(build_app(serving.gateway), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://segray") as serving.client:
        try:
            yield serving
        finally:
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()


@pytest.fixture(scope="module")
def server(ray_cluster, tmp_path_factory, empty_store):
    """A server of version 1 with two replicas, its registry and its settings."""
    folder = tmp_path_factory.mktemp("server")
    store = Store(folder, empty_store)
    store.add(0, "champion")
    store.add(1)
    (folder / "token").write_text(TOKEN + "\n")
    with create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serve = {"port": port, "replicas": 2, "max_replicas": 2, "token_file": str(folder / "token"), "poll_s": 0.2}
    tracking = {"uri": store.uri, "model": MODEL}
    settings = config.build({"results": str(folder / "results"), "tracking": tracking, "serve": serve})
    with running_server(settings, print) as info:
        yield info, store, settings
