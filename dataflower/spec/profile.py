"""Profiles: how a workflow runs on one kind of machine, apart from what it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dataflower.spec.document import ALIASES, ScalingDocument, WorkflowDocument
from dataflower.spec.finding import Finding
from dataflower.spec.suggest import did_you_mean
from dataflower.spec.tree import Path, Tree


def apply_profile(tree: Tree, name: str, *, required: bool) -> None:
    """Lay a profile of the file over the file. One that it lacks is a problem if `required`."""
    profiles = tree.data.get("profiles") if isinstance(tree.data, dict) else None
    known = profiles if isinstance(profiles, dict) else {}
    if name not in known:
        if required and isinstance(tree.data, dict):
            hint = did_you_mean(name, known, none="the file has no profiles")
            tree.problems.append(tree.problem(("profiles",), f"no profile {name!r}", hint, key=True))
        return
    if isinstance(known[name], dict):
        _lay_over(tree, tree.data, known[name], ("profiles", name), ())


def check_profiles(document: WorkflowDocument) -> Iterator[Finding]:
    """Profiles, chosen or not, name stages that exist."""
    for name, profile in document.profiles.items():
        for stage in profile.stages:
            if stage not in document.stages:
                hint = did_you_mean(stage, document.stages)
                yield Finding(("profiles", name, "stages", stage), f"no stage {stage!r}", hint, True)


def _lay_over(tree: Tree, base: dict[str, Any], overlay: dict[str, Any], source: Path, target: Path) -> None:
    for key, value in overlay.items():
        at, to = (*source, key), (*target, key)
        if target == ("stages",) and key not in base:
            continue  # `check_profiles` says so
        if len(target) >= 2 and target[0] == "stages" and key in ScalingDocument.model_fields:
            _drop_scaling(base, tree, target, key)
        if key == "scaling" and len(target) == 2 and isinstance(value, dict):
            for name in value:
                _drop_scaling(base, tree, target, name)
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _lay_over(tree, base[key], value, at, to)
            continue
        for path in [path for path in tree.marks if path[: len(to)] == to]:
            del tree.marks[path]
        base[key] = value
        for path, mark in list(tree.marks.items()):
            if path[: len(at)] == at:
                tree.marks[(*to, *path[len(at) :])] = mark


def _drop_scaling(stage: dict[str, Any], tree: Tree, target: Path, name: str) -> None:
    """A replica count may stand in two places under several names: the profile's replaces all of them."""
    meaning = ALIASES.get(name, name)
    replaced = {meaning, *(alias for alias, known in ALIASES.items() if known == meaning)}
    if meaning == "num_replicas":
        replaced |= {"min_replicas", "max_replicas", "min_containers", "max_containers"}
    elif meaning in ("min_replicas", "max_replicas"):
        replaced.add("num_replicas")
    inner = stage.get("scaling")
    for place in (stage, inner if isinstance(inner, dict) else {}):
        for key in replaced & place.keys():
            del place[key]
            tree.marks.pop((*target, key), None)
