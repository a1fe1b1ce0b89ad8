"""A function with one output that returns a dict: the value as it is, with a word where it looks like a mistake."""

from __future__ import annotations

import pytest

from dataflower.container.outputs import Outputs
from dataflower.wire import OutputPort


@pytest.mark.parametrize(
    ("value", "warnings"), [({"top": 1}, 1), ({"top": 1, "more": 2}, 0), ({"other": 1}, 0), (5, 0)]
)
def test_a_dict_with_just_the_port_is_handed_on_with_one_warning(
    value: object, warnings: int, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = Outputs([OutputPort("top")])
    for _ in range(3):
        assert outputs.values(value, {}) == {"top": value}
    said = capsys.readouterr().err
    assert said.count("a dict with the one key 'top' goes out as it is") == warnings
