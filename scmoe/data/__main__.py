"""`python -m scmoe.data fetch NAME`, `python -m scmoe.data list`."""

import argparse
import sys

from scmoe.data.catalog import DATASETS, list_datasets
from scmoe.data.fetch import fetch


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit status is 0, or 1 with one line on stderr that says why."""
    parser = argparse.ArgumentParser(prog="python -m scmoe.data", description=__doc__)
    root = argparse.ArgumentParser(add_help=False)
    root.add_argument("--root", help="folder with the data; default $SCMOE_DATA, then data/")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", parents=[root], help="the data sets, and which files are here")
    get = commands.add_parser("fetch", parents=[root], help="download data sets")
    get.add_argument("names", nargs="+", choices=DATASETS, metavar="NAME", help=", ".join(DATASETS))
    get.add_argument("--yes", action="store_true", help="download without asking")
    args = parser.parse_args(argv)
    if args.command == "list":
        print(list_datasets(args.root).to_string(index=False))
        return 0
    try:
        for name in args.names:
            fetch(name, args.root, yes=args.yes)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; run it again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
