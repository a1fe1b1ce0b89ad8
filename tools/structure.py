"""Write docs/structure.md: a line for each module, taken from its docstring.

Run as `python -m tools.structure`; `--check` fails if the page is out of date.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "structure.md"
PACKAGES = ("dataflower", "functions", "tools", "bench")
HEAD = """# Structure

A line for each module, from its docstring (`python -m tools.structure` writes this page). A module imports only from
rows below its own; `make check` enforces it:

    cli
    testing | loadgen
    gateway
    config
    host
    container | planner | llm | checkpoint
    core | channel
    wire
    spec
    errors | clock
"""


def page() -> str:
    """The page as it should be."""
    lines = [HEAD]
    for package in PACKAGES:
        found = sorted(modules(ROOT / package))
        for folder in sorted({path.parent for path in found}):
            lines.append(f"\n## {folder.relative_to(ROOT)}/\n")
            lines += [f"- `{path.name}` {summary(path)}\n" for path in found if path.parent == folder]
    return "".join(lines)


def modules(folder: Path) -> Iterator[Path]:
    """Python files below a folder that say something for themselves."""
    for path in folder.rglob("*.py"):
        if "_generated" not in path.parts and summary(path):
            yield path


def summary(path: Path) -> str:
    """First paragraph's first sentence of the module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    first = " ".join(text.split("\n\n")[0].split())
    return first.split(". ")[0].rstrip(".") if first else ""


def main() -> int:
    """Write the page, or compare."""
    if "--check" in sys.argv[1:]:
        same = PAGE.read_text(encoding="utf-8") == page()
        if not same:
            print("docs/structure.md is out of date: run `python -m tools.structure`", file=sys.stderr)
        return 0 if same else 1
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
