"""``cosegflow data check ROOT``: which data sets are there, and what is missing of them."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cosegflow.dataset_names import ALIASES, DATASETS

if TYPE_CHECKING:
    from cosegflow.data.check import Finding

SHOWN = 5
"""So many missing files are named; the JSON file has them all."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The subcommand `check` and its options."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    check = actions.add_parser(
        "check",
        help="tell which data sets lie below a folder, and what is missing",
        description="Tells which data sets lie in a folder or up to two levels below it, how many pairs, photographs "
        "and categories they have, and which files are missing. Exits with 0 if at least one data set can be used and "
        "nothing is missing, else with 1.",
    )
    check.add_argument("root", metavar="ROOT", type=Path, help="the folder to look in")
    check.add_argument(
        "--dataset",
        metavar="NAME",
        choices=(*DATASETS, *ALIASES),
        help=f"look for this data set only: {', '.join(DATASETS)}",
    )
    check.add_argument("--read", action="store_true", help="also read every pair, to find damaged files (takes long)")
    check.add_argument("--json", metavar="OUT", type=Path, help="write what was found to this file, too")


def main(arguments: argparse.Namespace) -> int:
    """Prints what is there; 0 if at least one data set can be used and nothing is missing, else 1.

    Raises:
        DatasetError, EvaluationError: one line that names the argument.
    """
    from cosegflow.data.check import check_folder, not_found
    from cosegflow.data.errors import DatasetError
    from cosegflow.data.registry import canonical_name
    from cosegflow.evaluate.output import check_output_file, print_any_name, write_json

    print_any_name()
    root = Path(os.path.expanduser(arguments.root))
    if not os.path.isdir(root):
        raise DatasetError(f"ROOT: {root}: need an existing folder")
    if arguments.json is not None:
        check_output_file(arguments.json, "--json")
    name = None if arguments.dataset is None else canonical_name(arguments.dataset)
    findings = check_folder(root, name, read=arguments.read)
    for finding in findings:
        print("\n".join(_lines(finding, arguments.read)))
    absent = not_found(findings) if name is None else []
    if absent:
        print(f"not found: {', '.join(absent)}")
    good = any(finding.usable for finding in findings) and all(finding.whole for finding in findings)
    print("nothing is missing" if good else "something is missing" if findings else "no data set found")
    if arguments.json is not None:
        content = {
            "root": str(root),
            "whole": good,
            "datasets": [_as_json(finding) for finding in findings],
            "not_found": absent,
        }
        write_json(arguments.json, content, "--json")
        print(arguments.json)
    return 0 if good else 1


def _lines(finding: "Finding", read: bool) -> list[str]:
    from cosegflow.data.check import relative

    lines = [f"{finding.dataset} ({finding.split}) in {finding.folder}"]
    if finding.pairs:
        full = f" ({finding.full_size} in the full set)" if finding.full_size else ""
        lines.append(
            f"  {finding.pairs} pairs{full}, {finding.photographs} photographs, {_number(finding.categories)}: "
            + ("all files read" if finding.whole and read else "all files there" if finding.whole else "NOT whole")
        )
    if finding.missing:
        lines.append(
            f"  {len(finding.missing)} files missing; {finding.complete_pairs} of {finding.pairs} pairs have all theirs"
        )
        lines += [f"    missing: {relative(path, finding.folder)}" for path in finding.missing[:SHOWN]]
        if len(finding.missing) > SHOWN:
            lines.append(f"    and {len(finding.missing) - SHOWN} more")
    lines += [f"  {problem}" for problem in finding.problems[:SHOWN]]
    if len(finding.problems) > SHOWN:
        lines.append(f"  and {len(finding.problems) - SHOWN} more")
    return lines


def _number(categories: tuple[str, ...]) -> str:
    return "1 category" if len(categories) == 1 else f"{len(categories)} categories"


def _as_json(finding: "Finding") -> dict[str, Any]:
    return {
        "dataset": finding.dataset,
        "split": finding.split,
        "folder": str(finding.folder),
        "pairs": finding.pairs,
        "complete_pairs": finding.complete_pairs,
        "full_size": finding.full_size,
        "photographs": finding.photographs,
        "categories": list(finding.categories),
        "usable": finding.usable,
        "missing": [str(path) for path in finding.missing],
        "problems": list(finding.problems),
    }
