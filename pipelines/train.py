"""Trains SegFormer and registers the best checkpoint.

python pipelines/train.py --config pipelines/configs/demo.yaml
ray job submit --working-dir . --runtime-env clusters/runtime-env.yaml -- python pipelines/train.py ...
"""

from segray.cli.main import run

if __name__ == "__main__":
    run("train")
