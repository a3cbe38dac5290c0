"""`evaluate`: a model and a split in, exact counts and scores out."""

import json
from dataclasses import asdict
from pathlib import Path

from segray import places, registry
from segray.cli.command import Parser, end
from segray.cli.tables import show_scores
from segray.cli.terminal import terminal
from segray.evaluate import evaluate


def main() -> None:
    """Runs the command."""
    end(_evaluate)


def _evaluate() -> None:
    parser = Parser("Evaluates a model on a split of a prepared dataset.", with_config=True)
    parser.add_argument(
        "--model",
        required=True,
        metavar="MODEL",
        help="checkpoint folder, models:/NAME@ALIAS, models:/NAME/VERSION or runs:/ID/model",
    )
    parser.add_argument("--data", metavar="DIR", help="short for --data.root DIR")
    parser.add_argument("--split", default="val", help="split to evaluate on (default: val)")
    parser.add_argument("--workers", type=int, help="tasks that share the rows (default: one a GPU or node)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result for programs")
    parser.add_argument("--quiet", action="store_true", help="print the result alone")
    flags, config = parser.parse()
    root = places.absolute("data.root", flags.data or config.data.root)
    folder = registry.fetch(flags.model, places.tracking_uri(config))
    found = evaluate(folder, root, flags.split, flags.workers, config.train.device)
    show_scores(terminal(), f"{flags.model} on {flags.split}, {found.rows} images", found.scores)
    if flags.json:
        written = asdict(found) | {"confusion": found.confusion.tolist()}
        flags.json.write_text(json.dumps(written, indent=2))
