"""A `Config` as the parts below it want to be told."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

from dataflower.checkpoint.settings import StoreConfig
from dataflower.config.settings import Config
from dataflower.host.settings import HostConfig

T = TypeVar("T")


def shared(config: Config, target: type[Any]) -> dict[str, Any]:
    """The settings of `config` that the dataclass `target` has too, by name."""
    ours = {f.name for f in dataclasses.fields(config)}
    return {f.name: getattr(config, f.name) for f in dataclasses.fields(target) if f.name in ours}


def resolved_code_path(config: Config) -> tuple[str, ...]:
    """The code path as absolute directories: containers have a working directory of their own."""
    return tuple(str(Path(entry).expanduser().resolve()) for entry in config.code_path)


def host_config(config: Config, **changes: Any) -> HostConfig:
    """Settings of a `Runtime`; `changes` go over them."""
    state_dir = config.state_dir.absolute()
    return HostConfig(
        **{
            **shared(config, HostConfig),
            "state_dir": state_dir,
            "code_path": resolved_code_path(config),
            "models": StoreConfig(**shared(config, StoreConfig)),
            **changes,
        }
    )
