"""CEL: what it sees, what it gives, how it fails."""

from __future__ import annotations

from typing import Any

import pytest

from dataflower.spec.expression import ExpressionError, compile_expression


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("score > 0.8", {"score"}),
        ("items.all(x, x.size > least)", {"items", "least"}),
        ("[1].exists(x, x > y) && x > 1", {"x", "y"}),
        ("'not a name' == name // nor this", {"name"}),
        ("has(a.b) ? c[d] : {e: f}.g", {"a", "c", "d", "e", "f"}),
        ("true || null in []", set()),
        ("text.startsWith('x')", {"text"}),
    ],
)
def test_variables(text: str, names: set[str]) -> None:
    assert compile_expression(text).variables == names


@pytest.mark.parametrize(
    ("text", "variables", "value"),
    [
        ("score > 0.8", {"score": 0.9, "unused": object()}, True),
        ("n > 0.5", {"n": 1}, True),
        ("image.shape[0] > 2 && image.dtype == 'UINT8'", {"image": {"dtype": "UINT8", "shape": [3, 4]}}, True),
        ("'cat' in labels", {"labels": ["dog"]}, False),
        ("size(text)", {"text": "abc"}, 3),
        ("m.a.b", {"m": {"a": {"b": [1, 2.5, None]}}}, [1, 2.5, None]),
    ],
)
def test_evaluate(text: str, variables: dict[str, Any], value: Any) -> None:
    assert compile_expression(text).evaluate(variables) == value


@pytest.mark.parametrize(
    ("text", "variables", "message"),
    [
        ("x > 1", {}, "needs x"),
        ("m.x", {"m": {}}, "no field 'x'"),
        ("1 / n", {"n": 0}, "zero"),
        ("s > 1", {"s": "a"}, "s > 1"),
        ("x == 1", {"x": object()}, "object"),
        ("l[3]", {"l": [1]}, "l[3]"),
    ],
)
def test_evaluation_fails_with_one_kind_of_error(text: str, variables: dict[str, Any], message: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        compile_expression(text).evaluate(variables)
    assert message in caught.value.message


@pytest.mark.parametrize(("text", "column"), [("a ++", 4), ("", 1), ("a &&\n b >", 10), ("f(1)", 1), ("1 + now()", 5)])
def test_compile_errors_have_a_column(text: str, column: int) -> None:
    with pytest.raises(ExpressionError) as caught:
        compile_expression(text)
    assert caught.value.column == column


def test_a_condition_is_true_or_false() -> None:
    assert compile_expression("1 < 2").holds({})
    with pytest.raises(ExpressionError, match="gave int, not true or false"):
        compile_expression("1 + 2").holds({})
