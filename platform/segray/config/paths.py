"""Where things go: the run's folder, the tracking store, and what is allowed in a submitted job."""

import os
import re
from datetime import UTC, datetime
from pathlib import Path

from segray.config import Config
from segray.core.errors import ConfigError

CONFIG_FILE = "config.json"
"""Settings of a run, sweep or checkpoint, in its folder."""
RESUME_LATEST = "auto"
"""Value of `--resume` for the latest unfinished run with the same settings."""
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray in the driver of a submitted job
JOB_WAIT, JOB_WAIT_S = "RAY_JOB_STOP_WAIT_TIME_S", 3
TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"
SQLITE = "sqlite:///"
PASSWORD_PATTERN = re.compile(
    r"(?<=://)([^/@:?#\s]*:)(?!\d{1,5}(?:[/?#&\s]|$))\S*(?=@)"  # up to the last @: passwords may hold any but blanks
    r"|([?&](?:\w*password|passwd|pwd|odbc_connect)=)[^&\s]*",
    re.IGNORECASE,
)
REDACTED = "***"


def in_submitted_job() -> bool:
    """Returns whether this process is the driver of a job given to `ray job submit`."""
    return JOB_VARIABLE in os.environ


def job_stop_timeout_s() -> int | None:
    """Returns the seconds that `ray job stop` gives this job before it kills it; none outside a submitted job."""
    if not in_submitted_job():
        return None
    told = os.environ.get(JOB_WAIT, "")
    return int(told) if told.isdecimal() else JOB_WAIT_S


def is_uri(place: str) -> bool:
    """Returns whether a place is a URI rather than a path."""
    return "://" in place


def absolute_path(key: str, place: str) -> str:
    """Returns a place as an absolute path or URI.

    Raises:
        ConfigError: it is relative in a submitted job, whose working directory is a copy that Ray throws away; or holds
            a secret.
    """
    if is_uri(place):
        if PASSWORD_PATTERN.search(place):
            raise ConfigError(
                f"{key} is {redact(place)}, with a secret in it that every record of it would hold; expected it in the "
                "environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the machine's own role)."
            )
        return place
    if in_submitted_job() and not Path(place).expanduser().is_absolute():
        raise ConfigError(
            f"{key} is {place}, a relative path; in a submitted job the working directory is a copy that is "
            "thrown away; expected an absolute path on shared storage or a URI."
        )
    return str(Path(place).expanduser().absolute())


def resolve_paths(config: Config) -> Config:
    """Returns the config with every place absolute and the tracking store named, without its password.

    Raises:
        ConfigError: a place is relative in a submitted job, the results are no folder, or the URI of the data holds a
            secret.
    """
    if is_uri(config.results):
        raise ConfigError(f"results is {config.results}; expected a folder that every node sees under this path.")
    results = absolute_path("results", config.results)
    data = config.data.model_copy(update={"root": absolute_path("data.root", config.data.root)})
    tracking = config.tracking.model_copy(update={"uri": redact(tracking_uri(config))})
    return config.model_copy(update={"results": results, "data": data, "tracking": tracking})


def tracking_uri(config: Config) -> str:
    """Returns the MLflow URI: the one given, else MLFLOW_TRACKING_URI, else `mlflow.db` beside the results.

    Raises:
        ConfigError: its path, or that of the results, is relative in a submitted job; or a run's record of it, which
            holds no password, is all there is.
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
    """Returns a URI, or what somebody says of one, that may be written down and shown: its password is left out."""
    return PASSWORD_PATTERN.sub(lambda found: f"{found[1] or found[2]}{REDACTED}", uri)


def _with_password(uri: str) -> str:
    known = os.environ.get(TRACKING_VARIABLE, "")
    if redact(known) != uri or known == uri:
        raise ConfigError(
            f"tracking.uri is {uri}, whose password is written down nowhere; give it again, in {TRACKING_VARIABLE} "
            "or with --tracking.uri."
        )
    return known


def create_run_dir(config: Config, what: str | None = None) -> tuple[str, str]:
    """Makes the folder of a new run and returns (name, folder).

    Args:
        config: of the run.
        what: it is, where it has no name; none takes the model's variant.

    Raises:
        ConfigError: a run of the given name is there already.
    """
    try:
        Path(config.results).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"results is {config.results}, where no folder can be made ({error.strerror}).") from error
    if config.name is not None:
        return config.name, _made(config.results, config.name)
    return _first_free(config, what or config.model.variant)


def _first_free(config: Config, what: str) -> tuple[str, str]:
    stem = _fresh_name(config, what)
    for name in (stem, *(f"{stem}-{number}" for number in range(2, 100))):
        folder = Path(config.results) / name
        try:
            folder.mkdir()  # exclusive: of two runs that start at once, one takes the next name
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
    """Returns where a run's picture of a step's predictions lies."""
    return run / "predictions" / f"step-{step:06d}.png"
