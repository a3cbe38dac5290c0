"""Probe that connects to the cluster without a token, because local settings do not show whether one is required."""

import os
import subprocess
import sys

import ray

PROBE_SCRIPT = """
import sys
from ray._raylet import GcsClient
from ray.exceptions import AuthenticationError
try:
    GcsClient(address=sys.argv[1]).internal_kv_exists(b"segray", None, 5)
except AuthenticationError:
    sys.exit(3)
"""
EXIT_CODES = {0: False, 3: True}
PATIENCE_S = 10.0
TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


class AuthProbe:
    """Connection attempt without a token, in a background process that starts on creation."""

    def __init__(self) -> None:
        address = ray.get_runtime_context().gcs_address
        known = {name: value for name, value in os.environ.items() if name not in TOKEN_VARIABLES}
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROBE_SCRIPT, address],
            env=known | {"RAY_AUTH_MODE": "disabled"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def is_rejected(self) -> bool | None:
        """Waits for the attempt. Returns True if it is rejected, False if accepted, None if it fails or times out."""
        try:
            return EXIT_CODES.get(self._process.wait(PATIENCE_S))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return None
