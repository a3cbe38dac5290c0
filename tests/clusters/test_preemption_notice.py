"""A spot notice becomes a drain of the machine's node: a metadata service and a ray of our own stand in."""

import inspect
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from ray._private import services
from ray.scripts.scripts import drain_node

SCRIPT = Path(__file__).parents[2] / "clusters" / "preemption-notice.sh"
RAY = """#!/bin/sh
printf '%s\\n' "$@" > {calls}/$(date +%s%N)
[ "$(ls {calls} | wc -l)" -gt {failures} ]
"""


class Metadata:
    """A machine's metadata service: refuses who does not know its manners, and gives notice when told to."""

    def __init__(self):
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self):
                right = self.path == "/latest/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
                self.answer("a-token" if right else None)

            def do_GET(self):
                outer.asked += 1
                if self.path == "/latest/meta-data/spot/instance-action":
                    right = self.headers["X-aws-ec2-metadata-token"] == "a-token"
                    self.answer(outer.aws if right else None)
                elif self.path == "/computeMetadata/v1/instance/preempted":
                    right = self.headers["Metadata-Flavor"] == "Google"
                    self.answer(outer.gcp if right else None)

            def answer(self, text):
                self.send_response(404 if text is None else 200)
                self.end_headers()
                self.wfile.write((text or "not found").encode())

            def log_message(self, *_):
                pass

        self.asked, self.aws, self.gcp = 0, None, "FALSE"
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def metadata():
    found = Metadata()
    yield found
    found.server.shutdown()
    found.server.server_close()


@pytest.fixture
def machine(tmp_path, metadata):
    """A machine with a raylet: its head, its node's id, and how the script is started there."""
    head = f"head-{secrets.token_hex(4)}"
    node = secrets.token_hex(28)
    calls = tmp_path / "calls"
    started = []

    def raylet(of_head, its_node):
        words = ["/ray/raylet/raylet", "-c", "import time; time.sleep(60)"]
        words += [f"--node_id={its_node}", "--node_ip_address=10.0.0.2", f"--gcs-address={of_head}:6379"]
        started.append(subprocess.Popen(words, executable=sys.executable))

    def run(cloud, failures=0):
        calls.mkdir(exist_ok=True)
        fake = tmp_path / "bin" / "ray"
        fake.parent.mkdir(exist_ok=True)
        fake.write_text(RAY.format(calls=calls, failures=failures))
        fake.chmod(0o755)
        env = {"PATH": f"{fake.parent}:{os.environ['PATH']}", "RAY_HEAD_IP": head, "TMPDIR": str(tmp_path)}
        env |= {"METADATA_URL": metadata.url, "METADATA_POLL_S": "0.1"}
        process = subprocess.Popen(["bash", SCRIPT, cloud], env=env, start_new_session=True, stdout=subprocess.PIPE)
        started.append(process)
        return process

    run.calls = lambda: [file.read_text().splitlines() for file in sorted(calls.iterdir())]
    raylet("another", secrets.token_hex(28))
    raylet(head, node)
    yield run, f"{head}:6379", node
    for process in started:
        if process.poll() is None:
            (os.killpg if process.args[0] == "bash" else os.kill)(process.pid, signal.SIGKILL)
        process.communicate()


def options(call):
    """The options of a `ray drain-node`, as Ray itself reads them."""
    assert call[0] == "drain-node"
    return drain_node.make_context("drain-node", call[1:]).params


def give_notice(metadata, cloud, left_s=90):
    if cloud == "gcp":
        metadata.gcp = "TRUE"
    else:
        at = datetime.now(UTC) + timedelta(seconds=left_s)
        metadata.aws = json.dumps({"action": "terminate", "time": at.strftime("%Y-%m-%dT%H:%M:%SZ")})


@pytest.mark.parametrize(("cloud", "least_s", "most_s"), [("aws", 80, 90), ("gcp", 30, 30)])
def test_a_notice_drains_the_own_node_until_the_machine_is_taken(machine, metadata, cloud, least_s, most_s):
    run, head, node = machine
    process = run(cloud)
    while metadata.asked < 3:
        time.sleep(0.05)
    assert process.poll() is None
    assert run.calls() == []  # nothing is drained before
    give_notice(metadata, cloud)
    assert process.wait(10) == 0
    (call,) = run.calls()
    found = options(call)
    assert (found["address"], found["node_id"]) == (head, node)
    assert found["reason"] == "DRAIN_NODE_REASON_PREEMPTION"
    assert least_s <= found["deadline_remaining_seconds"] <= most_s


def test_a_drain_that_did_not_reach_the_head_is_tried_again(machine, metadata):
    run, _, node = machine
    give_notice(metadata, "aws")
    assert run("aws", failures=2).wait(20) == 0
    assert [options(call)["node_id"] for call in run.calls()] == [node] * 3


def test_a_late_or_odd_notice_leaves_no_negative_time(machine, metadata):
    run, _, _ = machine
    give_notice(metadata, "aws", left_s=-30)
    assert run("aws").wait(10) == 0
    metadata.aws = '{"action": "stop"}'
    assert run("aws").wait(10) == 0
    late, odd = (options(call)["deadline_remaining_seconds"] for call in run.calls())
    assert late == 0
    assert 115 <= odd <= 120


def test_a_second_one_for_the_same_head_leaves_at_once(machine, metadata):
    run, _, _ = machine
    first = run("gcp")
    while metadata.asked < 1:
        time.sleep(0.05)
    assert run("gcp").wait(10) == 0
    assert first.poll() is None


def test_ray_still_names_node_and_head_in_the_arguments_of_a_raylet():
    source = inspect.getsource(services.start_raylet)
    assert 'f"--node_id={node_id}"' in source
    assert 'f"--gcs-address={gcs_address}"' in source
    assert services.RAYLET_EXECUTABLE.endswith("/raylet")
