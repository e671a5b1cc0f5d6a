"""Writes the hostile files to a folder, or a table of them to stdout: see README.md."""

from __future__ import annotations

import sys
from pathlib import Path

from hostile import archive_cases, nemo_cases, pickle_cases, tar_cases, zip_cases
from hostile.case import Case

MODULES = (tar_cases, zip_cases, pickle_cases, nemo_cases, archive_cases)
CASES: dict[str, Case] = {case.name: case for module in MODULES for case in module.CASES}


def table() -> str:
    """Return the table of README.md."""
    lines = ["| file | attack | its reader | the scan |", "|---|---|---|---|"]
    for name, case in CASES.items():
        slug = f"`{case.slug}`" if case.slug else "reads it"
        rules = ", ".join(f"`{rule}`" for rule in case.rules)
        lines.append(f"| `{name}` | {case.attack} | {slug} | {rules} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the files, or print the table."""
    if len(sys.argv) < 2:
        sys.stdout.write(table())
        return
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, case in CASES.items():
        (folder / name).write_bytes(case.make())


if __name__ == "__main__":
    main()
