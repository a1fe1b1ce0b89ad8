"""How a user's function is called: by name, or with `*args`."""

from __future__ import annotations

from typing import Any

from dataflower.container.target import bind


def test_what_follows_rest_arguments_is_given_by_name() -> None:
    def call(first: int, *others: int, scale: int, offset: int = 0) -> Any:
        return first, others, scale, offset

    target = bind(call, {"scale": 5})
    assert target.invoke({"a": 1, "scale": 5, "first": 2, "b": 3}) == (2, (1, 3), 5, 0)
    assert target.invoke({"first": 2, "offset": 7, "scale": 5}) == (2, (), 5, 7)


def test_without_rest_arguments_all_are_given_by_name() -> None:
    def call(a: int, b: int = 2) -> Any:
        return a, b

    assert bind(call).invoke({"b": 5, "a": 4}) == (4, 5)
