"""What is said of a name that is not known."""

from __future__ import annotations

from dataflower.spec.suggest import did_you_mean

MANY = [f"name{i}" for i in range(20)]


def test_the_nearest_name_wins() -> None:
    assert did_you_mean("detec", ["decode", "detect"], "look around") == "did you mean 'detect'?"


def test_few_names_are_listed() -> None:
    assert did_you_mean("x", ["b", "a", "b"], "look around", none="there are none") == "known: b, a"


def test_of_many_names_the_first_are_listed_where_there_is_nothing_better_to_say() -> None:
    listed = ", ".join(MANY[:12])
    assert did_you_mean("x", MANY, none="there are none") == f"known: {listed}, ... (20 in all)"
    assert did_you_mean("x", MANY, "`ls` lists them", none="there are none") == "`ls` lists them"


def test_no_names_are_said_to_be_none() -> None:
    assert did_you_mean("x", [], none="there are none") == "there are none"
    assert did_you_mean("x", [], "look around") == "look around"
