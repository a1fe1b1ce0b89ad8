"""Where the source of a Python module is, without importing it (nor its packages)."""

from __future__ import annotations

import importlib.util
import sys
import tokenize
from collections.abc import Callable, Iterable
from pathlib import Path

from dataflower.config.text import read_text
from dataflower.errors import NotFound
from dataflower.spec.load import load
from dataflower.spec.workflow import Workflow


def source_finder(directories: Iterable[str | Path] = ()) -> Callable[[str], tuple[str, str] | None]:
    """A `find_source` for `spec.load`: looks in the directories first, then on `sys.path`, at the time of the call."""
    first = [Path(directory) for directory in directories]

    def find(module: str) -> tuple[str, str] | None:
        path = module_file(module, [*first, *(Path(entry) for entry in sys.path)]) or _installed_file(module)
        return None if path is None else (str(path), read_source(path))

    return find


def module_file(module: str, roots: Iterable[Path]) -> Path | None:
    """The file of a dotted module name below the first root that has it."""
    parts = module.split(".")
    if not all(part.isidentifier() for part in parts):
        return None
    for root in roots:
        base = root.joinpath(*parts)
        for candidate in (base / "__init__.py", base.with_suffix(".py")):
            if candidate.is_file():
                return candidate
    return None


def _installed_file(module: str) -> Path | None:
    """The file of a module whose package only an import hook knows, as after `pip install --editable`."""
    package, _, rest = module.partition(".")
    try:
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin is not None and spec.has_location else None
    return module_file(rest, [Path(place) for place in spec.submodule_search_locations or ()])


def read_source(path: Path) -> str:
    """A module's text in the encoding that it declares; empty if it can't be read as text."""
    try:
        with tokenize.open(path) as file:
            return file.read()
    except (OSError, SyntaxError, UnicodeDecodeError):
        return ""


def file_reader(path: str) -> str | None:
    """A `read` for `spec.load`: a file's text, None if there is no such file. WorkflowInvalid: it is not text."""
    try:
        return read_text(path)
    except NotFound:
        return None


def load_file(path: str | Path, *, profile: str | None = None, code_path: Iterable[str | Path] = ()) -> Workflow:
    """Load a workflow file. Functions are looked for in `code_path`, beside the file, in the working directory.

    Raises:
        WorkflowInvalid: with every problem.
        NotFound: there is no such file.
    """
    return load_text(read_text(path), str(path), profile=profile, code_path=code_path)


def load_text(text: str, file: str, *, profile: str | None = None, code_path: Iterable[str | Path] = ()) -> Workflow:
    """The same for a text that came from elsewhere; `file` is where nested workflows are relative to.

    Raises:
        WorkflowInvalid: with every problem.
    """
    places = [*code_path, Path(file).parent, Path.cwd()]
    return load(
        text,
        file=file,
        read=file_reader,
        find_source=source_finder(places),
        profile=profile,
        searched=searched(places, "--code-path"),
    )


def searched(places: Iterable[str | Path], option: str) -> str:
    """Where functions were looked for, and which option adds a place: the hint of a module that is not there."""
    names = ", ".join(dict.fromkeys(str(Path(place).absolute()) for place in places))
    return f"looked for in {names} and on sys.path; {option} adds a directory"
