"""Checks whether a run or sweep can work on a cluster.

python pipelines/doctor.py --config pipelines/configs/demo.yaml
ray job submit --working-dir . --runtime-env clusters/runtime-env.yaml -- python pipelines/doctor.py ...
"""

from segray.cli.main import run

if __name__ == "__main__":
    run("doctor")
