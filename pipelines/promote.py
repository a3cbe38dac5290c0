"""Promotes a registered model to champion if it passes the gates, or rolls back.

python pipelines/promote.py --name segray --data data/demo --split test --dry-run
"""

from segray.cli.main import run

if __name__ == "__main__":
    run("promote")
