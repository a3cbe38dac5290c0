"""The flags of every command, separate from the commands, which take seconds to import."""

from collections.abc import Callable
from pathlib import Path

from segray.cli.parser import CommandParser


def _prepare_parser() -> CommandParser:
    # The libraries of the sources and formats take long to import, and no other command needs them for its flags.
    from segray.data.convert.shards import ShardLimits  # noqa: PLC0415
    from segray.data.convert.splits import parse_fractions  # noqa: PLC0415
    from segray.data.normalize import PILLOW_MAX_PIXELS  # noqa: PLC0415
    from segray.data.sources.formats import SOURCES  # noqa: PLC0415

    parser = CommandParser(
        "prepare",
        "Converts images and masks to a dataset of Parquet shards, on Ray. The same command resumes an interrupted\n"
        "conversion. With --check DIR it validates a dataset instead: see --check DIR --help.",
    )
    format_help = f"format of the source: {', '.join(SOURCES)}, or your own module:function (docs/formats.md)"
    parser.add_argument("--format", required=True, metavar="NAME", help=format_help)
    parser.add_argument("--source", metavar="DIR", help="folder to convert (not for format demo, which draws images)")
    parser.add_argument("--out", required=True, metavar="DIR", help="dataset to write: a folder, s3:// or gs://")
    parser.add_argument("--classes", type=Path, metavar="FILE", help="class names, one per line, in order of their ids")
    map_help = "YAML: `class: class` merges or renames, `class: null` drops a class; `*` matches all other classes"
    parser.add_argument("--map", type=Path, metavar="FILE", help=map_help)
    ignore_help = "mask id of the source to ignore in training; 255 (65535 with 256 or more classes) is always ignored"
    parser.add_argument("--ignore-id", type=int, action="append", default=[], metavar="ID", help=ignore_help)
    split_help = "fractions of train/val/test, or of train/val, e.g. 0.8/0.1/0.1; replaces the splits of the source"
    parser.add_argument("--split", type=parse_fractions, metavar="FRACTIONS", help=split_help)
    group_help = "with --split: samples with the same first regex group in their ids share a split, e.g. '^(.*)_'"
    parser.add_argument("--group-by", metavar="REGEX", help=group_help)
    bad_help = "samples that cannot be used: fail with a list of them (default), or skip them and write the list"
    parser.add_argument("--on-bad", choices=("fail", "skip"), default="fail", help=bad_help)
    columns_help = "CSV with additional columns by id, e.g. id,camera,city, for scores by slice"
    parser.add_argument("--columns", type=Path, metavar="FILE", help=columns_help)
    pixels_help = f"maximum pixels per image (default: {ShardLimits.image_pixels}, maximum: {PILLOW_MAX_PIXELS})"
    parser.add_argument("--max-pixels", type=int, default=ShardLimits.image_pixels, metavar="N", help=pixels_help)
    parser.add_argument("--quiet", action="store_true", help="print only errors")
    return parser


def _validate_parser() -> CommandParser:
    parser = CommandParser("prepare", "Validates a dataset and writes a page about it. Exits with code 2 on errors.")
    parser.add_argument("--check", required=True, metavar="DIR", help="dataset to validate: folder, s3:// or gs://")
    parser.add_argument("--out", metavar="DIR", help="folder of the page and the contact sheet (default: NAME-check)")
    parser.add_argument("--quiet", action="store_true", help="print only errors")
    return parser


def _train_parser() -> CommandParser:
    parser = CommandParser("train", "Trains SegFormer on a prepared dataset and registers the best checkpoint.")
    parser.add_common("data", "json", "quiet", "resume")
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="NAME",
        help="with --resume: a setting that may differ from the resumed run, or dataset, or classes",
    )
    return parser


def _tune_parser() -> CommandParser:
    parser = CommandParser("tune", "Searches hyperparameters, stops bad trials early, and registers the best model.")
    parser.add_common("data", "json", "quiet", "resume")
    return parser


def _evaluate_parser() -> CommandParser:
    parser = CommandParser("evaluate", "Evaluates a model on a split of a prepared dataset.")
    parser.add_common("model", "data", "workers", "json")
    parser.add_argument("--against", metavar="MODEL", help="baseline model to compare with on the same rows")
    parser.add_argument("--split", default="val", help="split to evaluate on (default: val)")
    slice_help = (
        "additional scores by a column of the dataset, by `size`, or by a regular expression on ids; repeatable"
    )
    parser.add_argument("--slice", action="append", default=[], metavar="NAME[=REGEX]", help=slice_help)
    group_help = "resample groups of dependent images, such as the frames of a video; syntax as for --slice"
    parser.add_argument("--group-by", metavar="NAME[=REGEX]", help=group_help)
    parser.add_argument("--report", type=Path, metavar="DIR", help="write an HTML report with figures to DIR")
    return parser


def _predict_parser() -> CommandParser:
    from segray.inference.batch.outputs import FORMATS  # noqa: PLC0415 as above

    parser = CommandParser(
        "predict",
        "Segments images and writes their masks, on Ray; a single image needs no cluster. The same command resumes an\n"
        "interrupted job.",
    )
    parser.add_common("model", "workers")
    source_help = "image, folder of images, video, parquet file or folder, or prepared dataset; also s3:// or gs://"
    parser.add_argument("--source", required=True, metavar="PATH", help=source_help)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the results; also s3:// or gs://")
    parser.add_argument("--split", metavar="NAME", help="split of a prepared dataset (default: all splits)")
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0], help="format of the masks (default: png)")
    parser.add_argument("--overlay", action="store_true", help="also write the images overlaid with their masks")
    parser.add_argument("--probabilities", action="store_true", help="also write class probabilities (float16 .npy)")
    parser.add_argument("--quiet", action="store_true", help="print only errors")
    return parser


def _promote_parser() -> CommandParser:
    parser = CommandParser("promote", "Promotes a registered model to champion if it passes the gates, or rolls back.")
    parser.add_alias("--name", "tracking.model", metavar="NAME")
    parser.add_argument("--version", type=int, metavar="N", help="version to promote (default: the challenger)")
    parser.add_common("data", "workers", "json")
    parser.add_argument("--split", default="test", help="split to evaluate on (default: test)")
    parser.add_argument("--dry-run", action="store_true", help="evaluate the gates, and change nothing")
    parser.add_argument("--force", action="store_true", help="promote even if a gate fails; requires --reason")
    parser.add_argument("--reason", metavar="TEXT", help="reason for --force or --rollback, for the audit entry")
    parser.add_argument("--rollback", action="store_true", help="restore the previous champion")
    return parser


def _serve_parser() -> CommandParser:
    parser = CommandParser("serve", "Serves a registered model over HTTP.")
    parser.add_alias("--name", "tracking.model", metavar="MODEL")
    parser.add_alias("--alias", "serve.alias", metavar="ALIAS")
    parser.add_alias("--canary", "serve.canary", metavar="FRACTION")
    parser.add_alias("--shadow", "serve.shadow", metavar="FRACTION", nargs="?", const="1")
    return parser


def _doctor_parser() -> CommandParser:
    parser = CommandParser("doctor", "Checks whether a run or sweep with these settings can work on the cluster.")
    parser.add_common("data", "json", "quiet")
    return parser


def _tracking_parser() -> CommandParser:
    parser = CommandParser(
        "tracking", "Uploads the remaining records of a run, or of a sweep and its trials, to MLflow."
    )
    parser.add_argument("action", choices=["sync"], help="sync: upload the records that MLflow does not have yet")
    parser.add_argument("run", type=Path, help="folder of the run or sweep, e.g. results/NAME")
    parser.add_argument("--tracking-uri", metavar="URI", help="MLflow store (default: the store in the run's settings)")
    return parser


PARSERS: dict[str, Callable[[], CommandParser]] = {
    "prepare": _prepare_parser,
    "validate": _validate_parser,
    "train": _train_parser,
    "tune": _tune_parser,
    "evaluate": _evaluate_parser,
    "predict": _predict_parser,
    "promote": _promote_parser,
    "serve": _serve_parser,
    "doctor": _doctor_parser,
    "tracking": _tracking_parser,
}
"""Function that creates the parser, by module of the command."""
