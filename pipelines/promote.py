"""Has a registered model served, if it is good enough.

python pipelines/promote.py --name segray --data data/demo --split test --dry-run
"""

from segray.cli.main import run

if __name__ == "__main__":
    run("promote")
