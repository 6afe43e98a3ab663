"""``aubench export``: write adversarial and purified images of a finished run, as PNG and safetensors."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from autoshield_bench.cli.options import add_plugin_option, plugin_files

NAME = "export"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        NAME,
        help="write adversarial and purified images of a run",
        description="Write clean, adversarial and purified images of chosen cells. Takes them from the cache of the "
        "run; nothing is trained or attacked.",
    )
    parser.add_argument("results", metavar="RESULTS", help="a results directory, or a suite's name below ./results")
    parser.add_argument("--only", metavar="PATTERN", default="*", help="cells whose id matches (default: all)")
    parser.add_argument("--images", type=int, metavar="N", default=16, help="images per cell (default: %(default)s)")
    parser.add_argument("--fallen", action="store_true", help="only images that the attack broke")
    parser.add_argument("--format", choices=("png", "safetensors", "both"), default="both", help="default: %(default)s")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write; default: RESULTS/export")
    add_plugin_option(parser)
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="data directory in torchvision's layout")
    parser.add_argument("--cache-dir", type=Path, metavar="DIR", help="cache of networks and adversarial images")
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the images and print one path per file."""
    from autoshield_bench.cli.show import find_results
    from autoshield_bench.cli.warnings import show_log
    from autoshield_bench.engine.export import ExportOptions, export

    show_log()
    directory = find_results(arguments.results)
    options = ExportOptions(
        only=arguments.only,
        images=arguments.images,
        fallen=arguments.fallen,
        formats=("png", "safetensors") if arguments.format == "both" else (arguments.format,),
        out=arguments.out or directory / "export",
        data_dir=arguments.data_dir,
        cache_dir=arguments.cache_dir,
        plugins=plugin_files(arguments),
    )
    for path in export(directory, options):
        sys.stdout.write(f"{path}\n")
    return 0
