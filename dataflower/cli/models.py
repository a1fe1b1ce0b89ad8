"""`dataflower models`: weights on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dataflower.cli.exits import ExitCode
from dataflower.cli.options import Output
from dataflower.cli.terminal import Format, emit, terminal

if TYPE_CHECKING:
    from dataflower.checkpoint.catalog import Catalog, Listed
    from dataflower.checkpoint.settings import StoreConfig

Name = Annotated[str, typer.Argument(help="Name of a model, as `dataflower models ls` shows it.", show_default=False)]

models = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None)


@models.callback()
def _models() -> None:
    """Fetch, list, check and remove models. They lie in `models_dir` (dataflower config), a folder for each.

    Example: dataflower models add hf://HuggingFaceTB/SmolLM2-135M-Instruct --name smollm2
    """


@models.command()
def add(
    source: Annotated[
        str,
        typer.Argument(help="URL (https, s3, gs, hf, file ...), folder, .safetensors or .gguf.", show_default=False),
    ],
    *,
    name: Annotated[
        str | None, typer.Option("--name", "-n", help="What it is to be called.", show_default="from the source")
    ] = None,
    copy: Annotated[bool, typer.Option("--copy", help="Copy a local folder instead of using it where it is.")] = False,
    repack: Annotated[
        bool, typer.Option("--repack", help="Write the weights anew, aligned for the processor (still safetensors).")
    ] = False,
    pin: Annotated[bool, typer.Option("--pin", help="Keep it, whatever else needs room.")] = False,
    pack: Annotated[
        bool, typer.Option("--pack/--no-pack", help="Lay a language model's weights out for this processor now.")
    ] = True,
    output: Output = Format.TABLE,
) -> None:
    """Make a model known by a name: fetch it, or use a local folder where it is. Interrupted, it goes on next time.

    A GGUF file is converted to bf16 safetensors, once. Weights of a language model that has a fast path are laid out
    for this machine's processor as well (bfloat16; `models pack` has the other), which takes seconds and as much room
    again: otherwise the first function that uses it would wait for that.

    Example: dataflower models add https://example.org/models/tiny --name tiny --pin
    """
    from dataflower.checkpoint import add as adding
    from dataflower.errors import DataflowerError

    catalog = _catalog()
    with _bar(name or source) as bar:
        manifest = adding.add(
            catalog, source, name or "", copy=copy, repack=repack, progress=bar.advance, expect=bar.total
        )
    if pin:
        catalog.pin(manifest.name)
    if pack and any(file.name == "config.json" for file in manifest.files):
        try:
            _packed(manifest.name, "bfloat16")
        except DataflowerError as error:  # it has been added all the same
            terminal().note(f"{manifest.name} is added, but could not be packed: {error.message}")
    _show([model for model in catalog.ls() if model.name == manifest.name], output)


@models.command("pack")
def pack_(
    names: Annotated[list[str], typer.Argument(help="Names of models.", show_default=False)],
    *,
    dtype: Annotated[str, typer.Option("--dtype", help="bfloat16 or float32: what functions compute in.")] = "bfloat16",
    output: Output = Format.TABLE,
) -> None:
    """Lay weights of language models out for this machine's processor, so that no function waits for that.

    What was laid out before, for the same content, is kept. Exit code 1 if a model can't be.

    Example: dataflower models pack smollm2 --dtype float32
    """
    from dataflower.checkpoint.packing import DTYPES
    from dataflower.cli.exits import WrongUsage
    from dataflower.spec.suggest import did_you_mean

    if dtype not in DTYPES:
        raise WrongUsage(f"--dtype: no dtype {dtype!r} ({did_you_mean(dtype, DTYPES)})")
    made = [_packed(name, dtype) for name in names]
    _show([model for model in _catalog().ls() if model.name in names], output)
    if not all(made):
        raise typer.Exit(ExitCode.FAILED)


def _packed(name: str, dtype: str) -> bool:
    """Whether its weights lie ready; says why not."""
    from dataflower.checkpoint import packing
    from dataflower.errors import Code, DataflowerError

    try:
        with _bar(f"packing {name}") as bar:
            packing.prepare(_config(), packing.Wanted(dtype, name), progress=bar.advance, expect=bar.total)
    except DataflowerError as error:
        if error.code is not Code.FAILED_PRECONDITION:
            raise
        terminal().note(f"{name} is used as it is, not packed: {error.message}")
        return False
    return True


@models.command("ls")
def list_(output: Output = Format.TABLE) -> None:
    """List the models of this machine.

    Example: dataflower models ls -o json
    """
    _show(_catalog().ls(), output)


@models.command()
def rm(
    names: Annotated[list[str], typer.Argument(help="Names of models.", show_default=False)],
    output: Output = Format.TABLE,
) -> None:
    """Remove models from the disk. Whoever has one in memory keeps it; a registered folder is only forgotten.

    Example: dataflower models rm tiny
    """
    from dataflower.cli.sizes import human

    catalog = _catalog()
    freed: list[dict[str, str | int]] = []
    for name in names:
        nbytes = catalog.rm(name)
        freed.append({"name": name, "freed_bytes": nbytes})
        terminal().note(f"removed {name} ({human(nbytes)} freed)")
    if output is not Format.TABLE:
        emit(freed, output, None)


@models.command()
def pin(name: Name) -> None:
    """Keep a model on the disk and, once a server has loaded it, in memory.

    Example: dataflower models pin smollm2
    """
    _catalog().pin(name)
    terminal().note(f"pinned {name}")


@models.command()
def unpin(name: Name) -> None:
    """Let a model make room for others again. A running server notices when a model is opened next.

    Example: dataflower models unpin smollm2
    """
    _catalog().pin(name, False)
    terminal().note(f"unpinned {name}")


@models.command()
def verify(
    names: Annotated[
        list[str] | None, typer.Argument(help="Names of models; all if none is given.", show_default=False)
    ] = None,
    mend: Annotated[bool, typer.Option("--mend", help="Fetch damaged parts again.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Read models and compare every part with what was noted when they came in. Exit code 1 if something is damaged.

    Example: dataflower models verify smollm2 --mend
    """
    catalog = _catalog()
    known = {model.name: model for model in catalog.ls()}
    found: list[dict[str, Any]] = []
    for name in names or known:
        with _bar(name) as bar:
            bar.total(known[name].nbytes if name in known else 0)
            damage = catalog.verify(name, mend=mend, progress=bar.advance)
        found.append(
            {
                "name": name,
                "good": not damage,
                "damage": [{"file": d.file, "offset": d.offset, "mended": d.mended} for d in damage],
            }
        )
    emit(found, output, lambda: _verdict(found))
    if any(not part["mended"] for row in found for part in row["damage"]):
        raise typer.Exit(ExitCode.FAILED)


# --- what they share -------------------------------------------------------------------------------------------


def _config() -> StoreConfig:
    from dataflower.checkpoint.settings import StoreConfig
    from dataflower.cli.settings import composed
    from dataflower.config.convert import shared

    return StoreConfig(**shared(composed().config, StoreConfig))


def _catalog() -> Catalog:
    from dataflower.checkpoint.catalog import Catalog
    from dataflower.checkpoint.disk import DiskTier

    return Catalog(DiskTier(_config()))


class _Bar:
    """Bytes on their way, told from any thread."""

    def __init__(self, total: Callable[[int], object], advance: Callable[[int], object]) -> None:
        self.total, self.advance = total, advance


@contextmanager
def _bar(what: str) -> Iterator[_Bar]:
    """A progress bar on stderr, if a person looks at it and nobody said --quiet."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = terminal().err()
    if terminal().quiet or not console.is_terminal:
        yield _Bar(lambda _: None, lambda _: None)
        return
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield _Bar(lambda n: progress.update(task, total=n), lambda n: progress.advance(task, n))


def _show(found: Sequence[Listed], output: Format) -> None:
    data = [
        {
            "name": m.name,
            "bytes": m.nbytes,
            "files": m.files,
            "digest": m.digest,
            "pinned": m.pinned,
            "source": m.source,
            "location": m.location,
            "last_used": m.last_used,
            "packed": list(_packings(m)),
        }
        for m in found
    ]
    emit(data, output, lambda: _table(found))


def _packings(model: Listed) -> tuple[str, ...]:
    """The dtypes in which its weights lie ready for this processor."""
    from dataflower.checkpoint.catalog import PACKED
    from dataflower.checkpoint.packing import packed_of

    return () if model.source.startswith(PACKED) else packed_of(_catalog().disk, model.name, model.digest)


def _table(found: Sequence[Listed]) -> Any:
    from datetime import UTC, datetime

    from rich.table import Table

    from dataflower.cli.sizes import human

    table = Table(box=None, pad_edge=False)
    for column in ("NAME", "SIZE", "DIGEST", "PINNED", "PACKED", "LAST USED", "FROM"):
        table.add_column(column, overflow="fold", justify="right" if column == "SIZE" else "left")
    for m in found:
        used = datetime.fromtimestamp(m.last_used, UTC).astimezone().strftime("%Y-%m-%d %H:%M")
        pinned, packed = "yes" if m.pinned else "", ", ".join(_packings(m))
        table.add_row(m.name, human(m.nbytes), m.digest[:12], pinned, packed, used, m.source or m.location)
    return table


def _verdict(found: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("NAME", "STATE"):
        table.add_column(column, overflow="fold")
    for row in found:
        damage = row["damage"]
        state = "good"
        if damage:
            parts = ", ".join(f"{Path(part['file']).name} at byte {part['offset']}" for part in damage[:5])
            state = f"{'mended' if all(part['mended'] for part in damage) else 'damaged'}: {parts}"
        table.add_row(row["name"], state)
    return table
