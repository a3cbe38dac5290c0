"""Searches settings with Ray Tune, stops bad trials early, and registers the best model.

python pipelines/tune.py --config pipelines/configs/sweep_camvid.yaml
ray job submit --working-dir . --runtime-env clusters/runtime-env.yaml -- python pipelines/tune.py ...
"""

from segray.cli.main import run

if __name__ == "__main__":
    run("tune")
