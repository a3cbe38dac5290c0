"""Paths of runs, datasets and the tracking store, and their restrictions in a submitted job."""

import os
import re
from datetime import UTC, datetime
from pathlib import Path

from segray.config import Config
from segray.core.errors import ConfigError

CONFIG_FILE = "config.json"
"""Name of the settings file in the folder of a run, sweep or checkpoint."""
RESUME_LATEST = "auto"
"""Value of `--resume` that selects the latest unfinished run with the same settings."""
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray in the driver of a submitted job
JOB_WAIT, JOB_WAIT_S = "RAY_JOB_STOP_WAIT_TIME_S", 3
TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"
SQLITE = "sqlite:///"
PASSWORD_PATTERN = re.compile(
    r"(?<=://)([^/@:?#\s]*:)(?!\d{1,5}(?:[/?#&\s]|$))\S*(?=@)"  # to the last @: passwords can contain @, / and :
    r"|([?&](?:\w*password|passwd|pwd|odbc_connect)=)[^&\s]*",
    re.IGNORECASE,
)
REDACTED = "***"


def in_submitted_job() -> bool:
    """Returns True if this process is the driver of a job submitted with `ray job submit`."""
    return JOB_VARIABLE in os.environ


def job_stop_timeout_s() -> int | None:
    """Returns the timeout in seconds after which `ray job stop` kills this job, or None outside a submitted job."""
    if not in_submitted_job():
        return None
    value = os.environ.get(JOB_WAIT, "")
    return int(value) if value.isdecimal() else JOB_WAIT_S


def is_uri(place: str) -> bool:
    """Returns True if a location is a URI and not a path."""
    return "://" in place


def absolute_path(key: str, place: str) -> str:
    """Returns a location as an absolute path or URI.

    Raises:
        ConfigError: the path is relative in a submitted job, where Ray deletes the working directory; or the URI
            contains a secret.
    """
    if is_uri(place):
        if PASSWORD_PATTERN.search(place):
            raise ConfigError(
                f"{key} is {redact(place)}, which contains a secret that would be stored in run records; set it in the "
                "environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), or use the machine's own role."
            )
        return place
    if in_submitted_job() and not Path(place).expanduser().is_absolute():
        raise ConfigError(
            f"{key} is {place}, a relative path; the working directory of a submitted job is a temporary copy that Ray "
            "deletes; expected an absolute path on shared storage or a URI."
        )
    return str(Path(place).expanduser().absolute())


def resolve_paths(config: Config) -> Config:
    """Returns the config with absolute paths and with the URI of the tracking store, without its password.

    Raises:
        ConfigError: a path is relative in a submitted job, `results` is a URI, or the URI of the dataset contains a
            secret.
    """
    if is_uri(config.results):
        raise ConfigError(f"results is {config.results}; expected a folder that every node sees under this path.")
    results = absolute_path("results", config.results)
    data = config.data.model_copy(update={"root": absolute_path("data.root", config.data.root)})
    tracking = config.tracking.model_copy(update={"uri": redact(tracking_uri(config))})
    return config.model_copy(update={"results": results, "data": data, "tracking": tracking})


def tracking_uri(config: Config) -> str:
    """Returns the MLflow URI: `tracking.uri`, else MLFLOW_TRACKING_URI, else `mlflow.db` next to the results folder.

    Raises:
        ConfigError: its path, or that of the results, is relative in a submitted job; or the URI comes from the record
            of a run, which has no password, and the environment does not provide the password.
    """
    uri = config.tracking.uri or os.environ.get(TRACKING_VARIABLE)
    if uri is not None and REDACTED in uri:
        uri = _with_password(uri)
    if uri is None:
        return f"{SQLITE}{Path(absolute_path('results', config.results)).parent}/mlflow.db"
    if uri.startswith(SQLITE):
        return SQLITE + absolute_path("tracking.uri", uri.removeprefix(SQLITE))
    return uri if is_uri(uri) else absolute_path("tracking.uri", uri)


def redact(uri: str) -> str:
    """Returns a URI, or a text that contains one, with its password replaced, so that it can be logged."""
    return PASSWORD_PATTERN.sub(lambda found: f"{found[1] or found[2]}{REDACTED}", uri)


def _with_password(uri: str) -> str:
    known = os.environ.get(TRACKING_VARIABLE, "")
    if redact(known) != uri or known == uri:
        raise ConfigError(
            f"tracking.uri is {uri}; its password is not stored; set {TRACKING_VARIABLE} or --tracking.uri with the "
            "password."
        )
    return known


def create_run_dir(config: Config, what: str | None = None) -> tuple[str, str]:
    """Creates the folder of a new run and returns (name, folder).

    Args:
        config: settings of the run.
        what: part of the generated name if the run has no name. Defaults to the model's variant.

    Raises:
        ConfigError: the folder cannot be created, or a run with the given name exists.
    """
    try:
        Path(config.results).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"results is {config.results}; no folder can be created there ({error.strerror}).") from error
    if config.name is not None:
        return config.name, _made(config.results, config.name)
    return _first_free(config, what or config.model.variant)


def _first_free(config: Config, what: str) -> tuple[str, str]:
    stem = _fresh_name(config, what)
    for name in (stem, *(f"{stem}-{number}" for number in range(2, 100))):
        folder = Path(config.results) / name
        try:
            folder.mkdir()  # exclusive: if two runs start at the same time, one takes the next name
        except FileExistsError:
            continue
        return name, str(folder)
    raise ConfigError(f"{config.results} holds a hundred runs named {stem}; name yours with --name.")


def _made(results: str, name: str) -> str:
    folder = Path(results) / name
    try:
        folder.mkdir()
    except FileExistsError as error:
        raise ConfigError(f"name is {name}, and {folder} is there already; choose another name.") from error
    return str(folder)


def _fresh_name(config: Config, what: str) -> str:
    data = Path(config.data.root.partition("?")[0].rstrip("/")).name
    return f"{data}-{what}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


def preview_path(run: Path, step: int) -> Path:
    """Returns the path of the image of a run's predictions at a step."""
    return run / "predictions" / f"step-{step:06d}.png"
