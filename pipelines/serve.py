"""Serves a registered model over HTTP, and follows its alias.

python pipelines/serve.py --name segray --alias champion
"""

from segray.cli.main import run

if __name__ == "__main__":
    run("serve")
