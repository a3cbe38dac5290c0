"""Compares segray with a peer in alternating turns of one run.

python pipelines/benchmark.py model --variant b0 --size 512 --batch 2
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks/ lies beside pipelines/
# Ray's workers inherit the environment variables, not sys.path.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [sys.path[0], os.environ.get("PYTHONPATH")]))

from benchmarks.main import main

if __name__ == "__main__":
    main()
