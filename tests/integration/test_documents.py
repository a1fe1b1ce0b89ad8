"""What the documents name is there: files, anchors, modules, names, verbs and their options, words of the Makefile."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import textwrap
from pathlib import Path
from typing import Any

import click
import pytest
from typer.main import get_command

from dataflower.cli.group import app
from dataflower.spec import document
from dataflower.spec.structure import read_document
from dataflower.spec.tree import parse

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "profiles/*.md")
    for path in ROOT.glob(pattern)
    if path.name != "structure.md"  # generated
)
PLACEHOLDERS = re.compile(r"\b(NAME|WORKFLOW|FILE|VERB)\b")
PACKAGES = {path.parent.name for path in ROOT.glob("dataflower/*/__init__.py")}
MODULES = {path.stem for path in ROOT.glob("dataflower/*.py")} | {"bench", "functions", "tools"}


def text(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def quoted(document: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", text(document))


def anchors(markdown: str) -> set[str]:
    heads = re.findall(r"^#+ (.*)$", markdown, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def exists(dotted: str) -> bool:
    """Whether a name can be imported, or found in a module that can: `core.turnstile`, `host.settings.HostConfig`."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for name in parts[length:]:
            if not hasattr(found, name):
                return name in getattr(found, "__annotations__", {})
            found = getattr(found, name)
        return True
    return False


def compile_example(block: str) -> ast.AST:
    """An example as it stands; what awaits stands in no function."""
    code: ast.AST = compile(
        textwrap.dedent(block), "example", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    )
    return code


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    lost = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text(document)):
        file, _, anchor = link.partition("#")
        target = (ROOT / document).parent / file if file else ROOT / document
        if "://" not in link and not (target.exists() and (not anchor or anchor in anchors(target.read_text()))):
            lost.append(link)
    assert lost == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_are_there(document: str) -> None:
    wanted = re.compile(r"[\w./-]+/[\w./-]+\.(py|pyi|yaml|json|csv|md|proto|toml)")
    named = [path for path in quoted(document) if wanted.fullmatch(path) and not PLACEHOLDERS.search(path)]
    folders = (ROOT, ROOT / "dataflower", (ROOT / document).parent)
    assert [path for path in named if not any((folder / path).exists() for folder in folders)] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_modules_and_names_are_there(document: str) -> None:
    run = [name for name in re.findall(r"python3? -m ([\w.]*\w)", text(document)) if not PLACEHOLDERS.search(name)]
    assert [name for name in run if importlib.util.find_spec(name) is None] == []
    dotted = re.compile(r"(\w+)(\.\w+)+(\(\))?")
    named = [found for name in quoted(document) if (found := dotted.fullmatch(name)) and not PLACEHOLDERS.search(name)]
    names = [found[0].removesuffix("()") for found in named if found[1] in PACKAGES | MODULES]
    names = [name for name in names if not name.endswith(".json")]  # a file that is called like one of the packages
    assert [name for name in names if not (exists(f"dataflower.{name}") or exists(name))] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_python_is_python_and_its_imports_are_there(document: str) -> None:
    blocks = re.findall(r"^ *```python\n(.*?)^ *```", text(document), re.DOTALL | re.MULTILINE)
    nodes = [node for block in blocks for node in ast.walk(compile_example(block)) if isinstance(node, ast.ImportFrom)]
    names = [f"{node.module}.{alias.name}" for node in nodes for alias in node.names]
    assert [name for name in names if not exists(name)] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_verbs_have_the_options_that_are_shown(document: str) -> None:
    command: Any = get_command(app)
    context = click.Context(command)
    wrong = []
    for line in re.findall(r"(?:^    |`|\$ |&& )dataflower ([a-z][^`\n#]*)", text(document), re.MULTILINE):
        words = line.split("  ")[0].split()
        verb = command.get_command(context, words[0].rstrip(","))
        if verb is None:
            wrong.append(line)
            continue
        part = getattr(verb, "commands", {}).get(words[1]) if len(words) > 1 else None
        known = {option for param in (part or verb).params for option in (*param.opts, *param.secondary_opts)}
        wrong += [f"{line}: {word}" for word in words if re.fullmatch(r"--[a-z-]+", word) and word not in known]
    assert wrong == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_words_of_the_makefile_are_there(document: str) -> None:
    makefile = text("Makefile")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE)) | {"bench-NAME"}
    assert [
        word for word in re.findall(r"(?:^    |`)make ([a-z-]+)", text(document), re.M) if word not in targets
    ] == []


MODELS = [
    model for model in vars(document).values() if isinstance(model, type) and issubclass(model, document.Document)
]


@pytest.mark.parametrize("model", MODELS)
def test_all_keys_of_a_workflow_file_are_described(model: type[document.Document]) -> None:
    keys = {field.alias or name for name, field in model.model_fields.items()}
    assert keys - set(re.findall(r"\w+", " ".join(quoted("docs/workflow.md")))) == set()


@pytest.mark.parametrize("example", re.findall(r"```yaml\n(.*?)```", text("docs/workflow.md"), re.DOTALL))
def test_examples_of_a_workflow_file_have_no_wrong_keys(example: str) -> None:
    pieces = ("apiVersion: dataflower/v1", "kind: Workflow", "metadata: {name: w}", "outputs: {}", "stages:")
    head = [piece for piece in pieces if not re.search(rf"^{piece.split(':')[0]}:", example, re.MULTILINE)]
    tree = parse("\n".join([*head, example]), "w.yaml")
    read_document(tree)
    assert tree.problems == []


def test_each_decision_has_a_number_of_its_own() -> None:
    files = sorted((ROOT / "docs" / "adr").glob("*.md"))
    assert [int(file.name[:4]) for file in files] == list(range(1, len(files) + 1))
    for file in files:
        assert file.read_text(encoding="utf-8").startswith(f"# {int(file.name[:4])}. ")
