"""Weights from the Hugging Face hub, cached in the user's cache folder."""

import os
import re
import shutil
import tempfile
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from segray.core.errors import CheckpointError
from segray.models.weights.files import FOLDER_FILES

HUB_URL = "https://huggingface.co"
TIMEOUT_S = 30
_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def is_hub_id(source: str) -> bool:
    """Returns True if a source has the form of a hub id, `owner/name`."""
    return _ID.fullmatch(source) is not None


def download(model_id: str) -> Path:
    """Returns the path of the weights file of a hub id. The file is downloaded once and cached.

    The hub URL is HF_ENDPOINT, by default huggingface.co. The cache folder is SEGRAY_CACHE, by default ~/.cache/segray.

    Raises:
        CheckpointError: the hub cannot be reached or has no such weights.
    """
    folder = Path(os.environ.get("SEGRAY_CACHE", Path.home() / ".cache" / "segray")) / model_id.replace("/", "--")
    for name in FOLDER_FILES:
        if (folder / name).is_file():
            return folder / name
    hub = os.environ.get("HF_ENDPOINT", HUB_URL).rstrip("/")
    reasons = []
    for name in FOLDER_FILES:
        try:
            return _download(f"{hub}/{model_id}/resolve/main/{name}", folder / name)
        except (URLError, OSError) as error:
            reasons.append(f"{name}: {error}")
    raise CheckpointError(
        f"weights {model_id} are not a local file and cannot be downloaded from {hub} ({'; '.join(reasons)}); "
        "expected a file, a folder, or a hub id that is available."
    )


def _download(url: str, target: Path) -> Path:
    with urlopen(url, timeout=TIMEOUT_S) as response:
        target.parent.mkdir(parents=True, exist_ok=True)
        # An incomplete file must never have the final name.
        with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as part:
            shutil.copyfileobj(response, part)
    return Path(part.name).replace(target)
