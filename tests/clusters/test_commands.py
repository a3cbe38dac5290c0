"""The launchers' shell commands, run as Ray wraps them, in a home of their own with a ray and a pip of our own."""

import json
import os
import re
import resource
import runpy
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from ray._raylet import InnerGcsClient
from ray.autoscaler._private.command_runner import _with_interactive
from ray.autoscaler._private.util import prepare_config, with_envs
from ray.core.generated.autoscaler_pb2 import ClusterConfig
from ray.scripts.scripts import start

from segray import config as settings

ROOT = Path(__file__).parents[2]
LAUNCHERS = ["aws", "gcp", "local"]
PARTS = ["setup_commands", "head_setup_commands", "head_start_ray_commands", "worker_start_ray_commands"]
TOKEN = "0123456789abcdef" * 4

# Notes what it was called with, as JSON; as python it says which address the head has, as curl that nobody answers.
RECORDER = f"""#!{sys.executable}
import json, os, resource, sys, time
from pathlib import Path
name = Path(sys.argv[0]).name
if name == "python":
    print("10.0.0.1")
call = {{"name": name, "args": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd()}}
call["files"] = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
there = Path(os.environ["CALLS"])
new = there / f"{{os.getpid()}}.new"  # two commands may end at once
new.write_text(json.dumps(call))
new.rename(there / f"{{time.time_ns()}}-{{name}}.json")
sys.exit(7 if name == "curl" else 0)
"""


def read(name):
    return yaml.safe_load((ROOT / "clusters" / f"{name}.yaml").read_text())


def wrapped(command):
    """What bash is given on the node: Ray's own wrapping, but for the login."""
    return shlex.split(_with_interactive(command)[-1])[0]


class Home:
    """A node's home folder, as far as the launcher has copied files to it."""

    def __init__(self, folder):
        self.folder, self.calls_folder = folder, folder / "calls"
        self.calls_folder.mkdir(parents=True)
        (folder / ".bashrc").touch()
        (folder / ".ray").mkdir()
        (folder / ".ray" / "auth_token").write_text(TOKEN)
        (folder / ".ray" / "auth_token").chmod(0o644)
        (folder / "segray").mkdir()
        for piece in ("clusters", "pipelines", "platform", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
            source = ROOT / piece
            (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / "segray" / piece)
        self.shared = folder / "shared"

    def record(self, where, *names):
        (self.folder / where).mkdir(parents=True, exist_ok=True)
        for name in names:
            (self.folder / where / name).write_text(RECORDER)
            (self.folder / where / name).chmod(0o755)

    def run(self, command, timeout=20, **env):
        base = {"HOME": str(self.folder), "PATH": f"{self.folder}/bin:{os.environ['PATH']}", "USER": "ray"}
        return subprocess.run(
            ["bash", "-c", wrapped(command)],
            env=base | {"CALLS": str(self.calls_folder)} | env,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            start_new_session=True,
            check=False,
        )

    def calls(self, name):
        found = (json.loads(file.read_text()) for file in sorted(self.calls_folder.glob(f"*-{name}.json")))
        return list(found)

    def wait_for(self, name):
        for _ in range(200):
            if self.calls(name):
                return self.calls(name)[-1]
            time.sleep(0.05)
        raise AssertionError(f"{name} was not called")


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "home")


def environment_command(name, home):
    """The launcher's variables for the shell, with its storage in the home folder."""
    return read(name)["metadata"]["environment"].replace("/shared", str(home.shared))


@pytest.mark.parametrize("name", LAUNCHERS)
def test_every_command_parses_as_ray_wraps_it(name):
    commands = [command for part in PARTS for command in read(name)[part]]
    scripts = [file.read_text() for file in (ROOT / "clusters").glob("*.sh")]
    assert len(commands) >= 8
    assert len(scripts) == 6
    for text in [*map(wrapped, commands), *scripts]:
        done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
        assert done.returncode == 0, text + done.stderr
    assert subprocess.run(["bash", "-n"], input="(echo # )", text=True, capture_output=True, check=False).returncode


@pytest.mark.parametrize("name", LAUNCHERS)
def test_every_file_that_a_command_names_is_copied_to_the_node(name):
    config = read(name)
    texts = [command for part in PARTS for command in config[part]]
    texts += [file.read_text() for file in (ROOT / "clusters").glob("*.sh")]
    named = {path for text in texts for path in re.findall(r"~/segray/([\w./-]+\w)", text)}
    assert {"clusters/install.sh", "clusters/environment.sh", "clusters/settings.sh"} <= named
    mounts = [there.removeprefix("~/segray/") for there in config["file_mounts"]]
    for path in named:
        assert (ROOT / path).is_file(), path
        assert any(path == mount or path.startswith(f"{mount}/") for mount in mounts), path
    assert (ROOT / "constraints.txt").is_file()
    assert "constraints.txt" in mounts


def started(name, home, part):
    """What the start commands of a head or a worker call, with the environment they call it with."""
    home.record("segray-venv/bin", "ray", "mlflow", "python")
    home.record("bin", "curl")
    home.record("bin", "notice")
    stand_in = 'exec "$HOME/bin/notice" "$RAY_HEAD_IP" "$@"\n'
    (home.folder / "segray" / "clusters" / "preemption-notice.sh").write_text(stand_in)
    assert home.run(environment_command(name, home)).returncode == 0
    config = prepare_config(read(name))
    environment = {"RAY_enable_autoscaler_v2": "1", "RAY_CLOUD_INSTANCE_ID": "i-1", "RAY_NODE_TYPE_NAME": "head"}
    if part.startswith("worker"):
        environment = {"RAY_HEAD_IP": "10.0.0.1", "RAY_CLOUD_INSTANCE_ID": "i-2"}
    for command in with_envs(config[part], environment):
        done = home.run(command, RAY_USAGE_STATS_ENABLED="1")  # as the launcher sets it where nobody objected
        assert done.returncode == 0, command + done.stderr
    stop, begin = home.calls("ray")
    assert stop["args"] == ["stop"]
    assert TOKEN not in json.dumps([call["args"] for call in home.calls("*")])
    return begin


@pytest.mark.parametrize("part", ["head_start_ray_commands", "worker_start_ray_commands"])
@pytest.mark.parametrize("name", LAUNCHERS)
def test_ray_is_started_with_all_that_jobs_need(name, part, home):
    begin = started(name, home, part)
    wanted = {
        "RAY_AUTH_MODE": "token",
        "RAY_JOB_STOP_WAIT_TIME_S": "60",
        "RAY_USAGE_STATS_ENABLED": "0",
        "NO_ALBUMENTATIONS_UPDATE": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_TRACKING_URI": "http://10.0.0.1:5000",
        "RAY_HEAD_IP": "10.0.0.1",
    }
    assert {key: begin["env"].get(key) for key in wanted} == wanted
    assert begin["env"]["SEGRAY_CONFIG"].startswith(str(home.shared))
    assert begin["env"]["PATH"].startswith(f"{home.folder}/segray-venv/bin:")  # a job's `python`
    assert not {"OMP_NUM_THREADS", "PYTHONWARNINGS", "RAY_AUTH_TOKEN"} & set(begin["env"])
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert begin["files"] == (65536 if hard == resource.RLIM_INFINITY else min(65536, hard))
    assert (Path(begin["cwd"]) / "pipelines" / "train.py").is_file()
    assert all(call["env"]["RAY_AUTH_MODE"] == "token" for call in home.calls("ray"))


@pytest.mark.parametrize("name", LAUNCHERS)
def test_the_head_listens_where_it_may_and_leads_an_autoscaler_that_works(name, home):
    begin = started(name, home, "head_start_ray_commands")
    options = start.make_context("start", begin["args"][1:]).params
    assert options["head"]
    assert (options["port"], options["dashboard_host"]) == (6379, "127.0.0.1")
    assert options["autoscaling_config"] == "~/ray_bootstrap_config.yaml"
    if name == "local":  # its node types cannot say so
        assert (options["num_cpus"], options["num_gpus"]) == (0, 0)
        assert begin["env"]["RAY_enable_autoscaler_v2"] == "0"
    else:
        assert begin["env"]["RAY_enable_autoscaler_v2"] == "1"
        assert any("report_node_types.py" in " ".join(call["args"]) for call in home.calls("python"))


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_worker_joins_the_head_and_listens_for_notices(name, home):
    begin = started(name, home, "worker_start_ray_commands")
    options = start.make_context("start", begin["args"][1:]).params
    assert options["address"] == "10.0.0.1:6379"
    if name == "local":
        assert not home.calls("notice")
        assert options["labels"] == "ray.io/market-type=on-demand"
    else:
        assert home.wait_for("notice")["args"] == ["10.0.0.1", name]


@pytest.mark.parametrize("name", LAUNCHERS)
def test_mlflows_server_keeps_all_on_the_shared_storage_and_is_private(name, home):
    from mlflow.cli import server

    started(name, home, "head_start_ray_commands")
    call = home.wait_for("mlflow")
    options = server.make_context("server", call["args"][1:]).params
    assert (options["host"], options["port"]) == ("10.0.0.1", 5000)
    assert options["app_name"] == "basic-auth"
    assert options["allowed_hosts"].split(",")[0] == "10.0.0.1:5000"
    assert options["backend_store_uri"].startswith(f"sqlite:///{home.shared}/")
    assert options["artifacts_destination"].startswith(f"{home.shared}/")


def test_another_server_takes_mlflows_place(home):
    env = home.folder / "segray.env"
    env.write_text(
        f"export SEGRAY_SHARED={home.shared} SEGRAY_MLFLOW_STORE=sqlite:///x MLFLOW_TRACKING_URI=https://mlflow.example\n"
    )
    home.record("segray-venv/bin", "mlflow", "python")
    home.record("bin", "curl")
    done = home.run("bash ~/segray/clusters/mlflow-server.sh")
    assert done.returncode == 0, done.stderr
    assert "https://mlflow.example" in done.stdout
    time.sleep(0.3)
    assert not home.calls("mlflow")


def test_the_settings_of_the_cluster_are_written_once_and_are_settings(home):
    home.run(environment_command("local", home))
    for _ in range(2):
        done = home.run("bash ~/segray/clusters/settings.sh")
        assert done.returncode == 0, done.stderr
    (file,) = home.folder.rglob("segray.yaml")
    assert settings.load([file]).results == str(file.parent / "results")
    assert (file.parent / "results").is_dir()
    file.write_text("results: /elsewhere\n")
    home.run("bash ~/segray/clusters/settings.sh")
    assert settings.load([file]).results == "/elsewhere"


PYTHON = """#!/bin/bash
mkdir -p "$3/bin"
cp "$HOME/bin/python" "$3/bin/python"
cp "$HOME/bin/pip" "$3/bin/pip"
echo made >> "$HOME/venvs"
"""


def test_the_setup_installs_torch_first_at_the_pins_and_makes_nothing_twice(home):
    home.record("bin", "python", "pip")
    (home.folder / "bin" / "python3.11").write_text(PYTHON)
    (home.folder / "bin" / "python3.11").chmod(0o755)
    commands = [environment_command("local", home), *read("local")["setup_commands"][1:]]
    for _ in range(2):
        for command in commands:
            done = home.run(command)
            assert done.returncode == 0, done.stderr
    installs = [call["args"][call["args"].index("install") :] for call in home.calls("pip")]
    assert installs[0] == ["install", "--constraint", "constraints.txt", "torch"]
    assert installs[1][:3] == ["install", "--constraint", "constraints.txt"]
    assert len(installs) == 4
    assert (home.folder / "venvs").read_text() == "made\n"
    assert {call["cwd"] for call in home.calls("pip")} == {str(home.folder / "segray")}
    assert (home.folder / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600
    assert (home.folder / ".local/bin/ray").is_symlink()  # which `ray down` looks for
    assert not (home.folder / "segray" / "build").exists()


@pytest.mark.slow
def test_the_setup_really_installs_segray(home):
    own = {
        name: value for name, value in os.environ.items() if name.startswith("PIP_") or name.lower().endswith("_proxy")
    }
    own.setdefault("PIP_CACHE_DIR", str(Path.home() / ".cache" / "pip"))
    for command in [
        environment_command("local", home),
        *read("local")["setup_commands"][1:],
        *read("local")["head_setup_commands"],
    ]:
        done = home.run(command, timeout=1800, **own)
        assert done.returncode == 0, done.stdout + done.stderr
    look = "import ray, segray, torch; print(ray.__version__, torch.__version__.split('+')[0], segray.__file__)"
    done = home.run(f'~/segray-venv/bin/python -c "{look}"', timeout=120)
    ray_version, torch_version, file = done.stdout.split()
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    assert (ray_version, torch_version) == (pins["ray"], pins["torch"])
    assert file.startswith(str(home.folder / "segray-venv"))


GPU = {"CPU": 8, "GPU": 1}
GROUPS = {"gpu": (GPU, 2), "gpu-spot": (GPU, 8), "cpu": ({"CPU": 8}, 4)}


@pytest.mark.parametrize("name", ["aws", "gcp"])
@pytest.mark.parametrize(
    ("most", "expected"), [(None, GROUPS), (12, GROUPS | {"cpu": ({"CPU": 8}, 2)}), (1, {"gpu": (GPU, 1)})]
)
def test_the_cluster_hears_which_workers_it_may_have(name, most, expected, tmp_path, monkeypatch):
    told = {}

    class Client:
        def __init__(self, address):
            told["address"] = address

        def report_cluster_config(self, serialized):
            told["config"] = ClusterConfig.FromString(serialized)

    assert hasattr(InnerGcsClient, "report_cluster_config")
    file = tmp_path / "ray_bootstrap_config.yaml"
    settings = prepare_config(read(name) | ({} if most is None else {"max_workers": most}))
    file.write_text(json.dumps(settings))  # as Ray leaves it on the head
    monkeypatch.setattr("segray.cluster.ray_internals.GcsClient", Client)
    monkeypatch.setattr("sys.argv", ["report_node_types.py", str(file)])
    monkeypatch.setenv("RAY_HEAD_IP", "10.0.0.1")
    runpy.run_path(str(ROOT / "clusters" / "report_node_types.py"), run_name="__main__")
    assert told["address"] == "10.0.0.1:6379"
    found = {group.name: (dict(group.resources), group.max_count) for group in told["config"].node_group_configs}
    assert found == expected
