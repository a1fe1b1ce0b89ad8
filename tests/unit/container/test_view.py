from __future__ import annotations

import os
from pathlib import Path

from dataflower.container.view import model_caches, view


def test_only_what_exists_is_shown_and_nothing_twice(tmp_path: Path) -> None:
    (tmp_path / "code" / "inner").mkdir(parents=True)
    inner, code = str(tmp_path / "code" / "inner"), str(tmp_path / "code")
    seen = view(readable=[inner, code, str(tmp_path / "missing"), "/"], environ={"HOME": str(tmp_path)}, path=[])
    assert code in seen.readable
    assert inner not in seen.readable
    assert "/" not in seen.readable
    assert not [path for path in seen.readable if not os.path.exists(path)]


def test_a_link_that_leads_out_of_a_shown_folder_is_shown_itself(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "code" / "data").symlink_to(tmp_path / "elsewhere")
    link = str(tmp_path / "code" / "data")
    seen = view(readable=[str(tmp_path / "code"), link], environ={"HOME": "/nowhere"}, path=[])
    assert link in seen.readable


def test_secrets_of_the_home_directory_are_covered(tmp_path: Path) -> None:
    for name in (".ssh", ".aws", "project"):
        (tmp_path / name).mkdir()
    seen = view(readable=[str(tmp_path)], environ={"HOME": str(tmp_path)}, path=[])
    assert {str(tmp_path / ".ssh"), str(tmp_path / ".aws")} <= set(seen.hidden)
    assert str(tmp_path / "project") not in seen.hidden


def test_models_are_shown_and_the_tokens_beside_them_are_not(tmp_path: Path) -> None:
    cache = tmp_path / ".cache" / "huggingface"
    (cache / "hub").mkdir(parents=True)
    (cache / "token").write_text("hf_secret")
    shown = view(environ={"HOME": str(tmp_path)}, path=[]).readable
    assert str(cache / "hub") in shown
    assert not [path for path in shown if str(cache / "token").startswith(path)]
    assert model_caches({"HF_HOME": "/models"}, "/home/me")[1] == "/models/hub"


def test_a_machine_without_a_home_gets_one() -> None:
    assert view(environ={}, path=[]).private.count("/tmp") == 1
    assert "/" not in view(environ={"HOME": "/"}, path=[]).private
