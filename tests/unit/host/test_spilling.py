"""The folder of a server's own in which its containers spill."""

from __future__ import annotations

import os
from pathlib import Path

from dataflower.channel.segment import Spill, device_of
from dataflower.host.spilling import SpillFolder, own_folder


def opened(folder: Path) -> SpillFolder:
    made = own_folder(Spill(str(folder), 1 << 20, device_of(str(folder))))
    assert made is not None
    return made


def test_what_a_killed_server_left_is_removed_and_what_a_living_one_has_stays(tmp_path: Path) -> None:
    """Whatever number of a process their names tell: another process namespace has other processes of that number."""
    left = tmp_path / f"dataflower-spill-{os.getpid()}-left"
    (left / "7").mkdir(parents=True)
    (left / "7" / "bytes").write_bytes(b"x")
    living = opened(tmp_path)
    named = tmp_path / "dataflower-spill-999999999-living"
    os.rename(living.spill.directory, named)
    try:
        assert not left.exists()
        second = opened(tmp_path)
        assert sorted(tmp_path.iterdir()) == sorted([named, Path(second.spill.directory)])
        second.close()
        assert list(tmp_path.iterdir()) == [named]
    finally:
        living.close()


def test_what_is_no_servers_stays(tmp_path: Path) -> None:
    kept = [tmp_path / "dataflower-spill-note", tmp_path / "others"]
    kept[0].write_text("a file")
    kept[1].mkdir()
    opened(tmp_path).close()
    assert sorted(tmp_path.iterdir()) == sorted(kept)


def test_a_directory_that_takes_no_folder_is_said_and_nothing_is_spilled(tmp_path: Path) -> None:
    place = tmp_path / "gone"
    place.mkdir()
    spill = Spill(str(place), 1 << 20, device_of(str(place)))
    place.rmdir()
    assert own_folder(spill) is None
