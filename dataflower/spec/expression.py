"""Conditions of a switch: the Common Expression Language, evaluated without side effects.

An expression sees the stage's inputs and CEL's own functions, nothing else: it always ends and can't reach the machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from dataflower.errors import InvalidArgument

_TEXT = {"size", "contains", "startsWith", "endsWith", "matches"}
_CONVERSIONS = {"int", "uint", "double", "string", "bytes", "timestamp", "duration", "type", "dyn"}
_DATES = {"getDate", "getDayOfMonth", "getDayOfWeek", "getDayOfYear", "getFullYear", "getMonth"}
_TIMES = {"getHours", "getMilliseconds", "getMinutes", "getSeconds"}
FUNCTIONS = frozenset({"has", *_TEXT, *_CONVERSIONS, *_DATES, *_TIMES})
"""Functions that an expression may call, besides the operators and the macros `all exists exists_one map filter`."""

_MACROS = frozenset({"all", "exists", "exists_one", "existsOne", "map", "filter"})
_KEYWORDS = frozenset({"true", "false", "null", "in"})
_TOKEN = re.compile(
    r"""(?P<text>[rbRB]{0,2}(?:'{3}.*?'{3}|"{3}.*?"{3}|'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"))"""
    r"""|(?P<comment>//[^\n]*)|(?P<name>[A-Za-z_]\w*)|(?P<number>\d[\w.]*)|(?P<mark>\S)""",
    re.DOTALL,
)
_POSITION = re.compile(r"<input>:(\d+):(\d+): ([^\n]*)")


class ExpressionError(InvalidArgument):
    """An expression that can't be compiled, or failed to evaluate. `column` counts from 1 in the expression."""

    def __init__(self, message: str, column: int = 1) -> None:
        super().__init__(message)
        self.column = column


class Expression:
    """A compiled expression; immutable, may be evaluated any number of times."""

    __slots__ = ("_program", "text", "variables")

    def __init__(self, text: str, program: Any, variables: frozenset[str]) -> None:
        self.text = text
        self.variables = variables
        self._program = program

    def evaluate(self, variables: Mapping[str, Any]) -> Any:
        """The expression's value.

        `variables`: None, bool, int, float, str, bytes, lists and maps of them. Names that it does not use are ignored.

        Raises:
            ExpressionError: a missing variable, field or operation for these types, a division by zero.
        """
        missing = sorted(self.variables - variables.keys())
        if missing:
            raise ExpressionError(f"{self.text!r} needs {', '.join(missing)}")
        try:
            return self._program.execute({name: variables[name] for name in self.variables})
        except KeyError as error:
            raise ExpressionError(f"{self.text!r}: no field {error.args[0]!r}") from error
        except (ArithmeticError, IndexError, RuntimeError, TypeError, ValueError) as error:
            raise ExpressionError(f"{self.text!r}: {error}") from error

    def holds(self, variables: Mapping[str, Any]) -> bool:
        """Whether the condition is true.

        Raises:
            ExpressionError: as `evaluate`, or the value is not a boolean.
        """
        value = self.evaluate(variables)
        if not isinstance(value, bool):
            raise ExpressionError(f"{self.text!r} gave {type(value).__name__}, not true or false")
        return value

    def __repr__(self) -> str:
        return f"Expression({self.text!r})"


@lru_cache(maxsize=1024)
def compile_expression(text: str) -> Expression:
    """Compile CEL.

    Raises:
        ExpressionError: a syntax error, with its column, or a function that does not exist.
    """
    import cel  # takes 0.3 s because the package drags in its command line; only workflows with a switch need it

    try:
        program = cel.compile(text)
    except ValueError as error:
        raise _syntax_error(text, str(error)) from error
    unknown = [name for name in program.functions() if name not in FUNCTIONS and re.fullmatch(r"[A-Za-z]\w*", name)]
    if unknown:
        raise ExpressionError(f"no function {unknown[0]!r} in expressions", text.find(unknown[0]) + 1)
    return Expression(text, program, frozenset(program.variables()) & frozenset(_free_names(text)))


def _syntax_error(text: str, message: str) -> ExpressionError:
    found = _POSITION.search(message)
    if found is None:
        return ExpressionError(f"not an expression: {text!r}")
    line, column, reason = int(found[1]), int(found[2]), found[3].split(", expecting")[0].split(" expecting ")[0]
    before = sum(len(row) + 1 for row in text.split("\n")[: line - 1])
    return ExpressionError(reason.removeprefix("Syntax error: "), before + column)


def _free_names(text: str) -> Iterator[str]:
    """Names used outside the macros that bind them (`x` is bound in `items.all(x, x > 1)`, `items` is not)."""
    tokens = [(match.lastgroup, match[0]) for match in _TOKEN.finditer(text) if match.lastgroup != "comment"]
    bound: list[str] = []  # one entry per open bracket: the name that it binds, or ""
    for at, (kind, word) in enumerate(tokens):
        previous = tokens[at - 1][1] if at else ""
        following = tokens[at + 1][1] if at + 1 < len(tokens) else ""
        if kind == "mark" and word in "([{":
            is_macro = word == "(" and previous in _MACROS and at >= 2 and tokens[at - 2][1] == "."
            bound.append(following if is_macro else "")
        elif kind == "mark" and word in ")]}" and bound:
            bound.pop()
        elif kind == "name" and previous != "." and following != "(" and word not in _KEYWORDS and word not in bound:
            yield word
