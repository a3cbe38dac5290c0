"""Where things go, and what of it may be written down."""

import pytest

from segray import config
from segray.config import paths
from segray.core.errors import ConfigError

SECRET = "postgresql+psycopg2://me:se@cret:x@host:5432/mlflow"
SHOWN = "postgresql+psycopg2://me:***@host:5432/mlflow"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        (SECRET, SHOWN),
        ("http://me:secret@host", "http://me:***@host"),
        ("postgresql://host/db?user=me&password=se/cret&x=1", "postgresql://host/db?user=me&password=***&x=1"),
        ("postgresql://me:se/c?ret@host/db", "postgresql://me:***@host/db"),
        ("s3://KEY:se/c+ret@bucket/set", "s3://KEY:***@bucket/set"),
        ("mssql://host/db?PASSWORD=secret", "mssql://host/db?PASSWORD=***"),
        (
            "API request to http://me:secret@host:5000/api failed: a@b",
            "API request to http://me:***@host:5000/api failed: a@b",
        ),
        ("http://host:5000?x=a@b", "http://host:5000?x=a@b"),
        (
            "s3://bucket?endpoint_override=http://host:9000&x=a@b",
            "s3://bucket?endpoint_override=http://host:9000&x=a@b",
        ),
        ("http://me@host:5000", "http://me@host:5000"),
        ("http://host:5000/a:b@c", "http://host:5000/a:b@c"),
        ("sqlite:////data/a:b@c/mlflow.db", "sqlite:////data/a:b@c/mlflow.db"),
    ],
)
def test_a_password_is_masked_and_nothing_else(uri, shown):
    assert paths.redact(uri) == shown
    assert paths.redact(shown) == shown


def test_the_settled_settings_hold_no_password_and_it_is_taken_from_the_environment_again(monkeypatch):
    monkeypatch.delenv(paths.TRACKING_VARIABLE, raising=False)
    given = config.build({"tracking.uri": SECRET})
    assert paths.tracking_uri(given) == SECRET
    settled = paths.resolve_paths(given)
    assert "cret" not in settled.model_dump_json()
    with pytest.raises(ConfigError, match=r"\*\*\*@host.*its password is not stored"):
        paths.tracking_uri(settled)
    monkeypatch.setenv(paths.TRACKING_VARIABLE, SHOWN)
    with pytest.raises(ConfigError, match="its password is not stored"):
        paths.tracking_uri(settled)
    monkeypatch.setenv(paths.TRACKING_VARIABLE, SECRET)
    assert paths.tracking_uri(settled) == SECRET


def test_a_secret_in_the_address_of_the_data_is_refused_without_being_told():
    with pytest.raises(ConfigError, match=r"s3://KEY:\*\*\*@bucket/set, which contains a secret") as raised:
        paths.resolve_paths(config.build({"data.root": "s3://KEY:h1dden@bucket/set"}))
    assert "h1dden" not in str(raised.value)
    with pytest.raises(ConfigError, match=r"--data is s3://KEY:\*\*\*@bucket"):  # as all commands ask
        paths.absolute_path("--data", "s3://KEY:h1dden@bucket/set")


@pytest.mark.parametrize(("told", "seconds"), [(None, 3), ("60", 60), ("soon", 3)])
def test_a_job_knows_how_long_it_has_once_it_is_stopped(told, seconds, monkeypatch):
    monkeypatch.delenv(paths.JOB_VARIABLE, raising=False)
    assert paths.job_stop_timeout_s() is None
    monkeypatch.setenv(paths.JOB_VARIABLE, "{}")
    if told is not None:
        monkeypatch.setenv(paths.JOB_WAIT, told)
    assert paths.job_stop_timeout_s() == seconds
