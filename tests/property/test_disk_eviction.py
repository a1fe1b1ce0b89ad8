"""What makes room on the disk: under the cap afterwards, nothing pinned, nothing that could not be fetched again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflower.checkpoint.eviction import Stored, victims
from dataflower.errors import ResourceExhausted

MODELS = st.lists(
    st.builds(
        Stored,
        st.uuids().map(str),
        st.integers(0, 1000),
        st.booleans(),
        st.booleans(),
        st.floats(0, 100),
    ),
    max_size=12,
)


@given(MODELS, st.integers(0, 1500), st.integers(1, 4000))
def test_enough_goes_and_no_more_than_needed(models: list[Stored], nbytes: int, cap: int) -> None:
    total = sum(m.nbytes for m in models)
    fixed = sum(m.nbytes for m in models if m.pinned or not m.again)
    try:
        chosen = victims(models, nbytes, cap, "new")
    except ResourceExhausted:
        assert fixed + nbytes > cap
        return
    gone = [m for m in models if m.name in chosen]
    assert all(m.again and not m.pinned for m in gone)
    left = total - sum(m.nbytes for m in gone)
    assert left + nbytes <= cap
    if gone:
        newest = max(gone, key=lambda m: (m.last_used, m.name))
        assert left + newest.nbytes + nbytes > cap
        kept = [m for m in models if m.again and not m.pinned and m not in gone]
        assert all((newest.last_used, newest.name) <= (m.last_used, m.name) for m in kept)


@given(MODELS, st.integers(0, 10**9))
def test_no_cap_means_no_victims(models: list[Stored], nbytes: int) -> None:
    assert victims(models, nbytes, 0) == ()


def test_the_message_names_what_is_kept() -> None:
    models = [Stored("a", 100, True, True, 0.0), Stored("b", 100, False, False, 0.0)]
    with pytest.raises(ResourceExhausted, match=r"kept: a \(pinned\), b \(only copy\)"):
        victims(models, 100, 250)
