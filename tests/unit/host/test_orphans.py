"""Several hosts of one process share whether it adopts orphans, in whatever order they come and go."""

from __future__ import annotations

from dataflower.host.processes import adopt_orphans, disown_orphans, is_subreaper


def test_the_last_host_leaves_it_as_the_first_has_found_it() -> None:
    before = is_subreaper()
    adopt_orphans()
    adopt_orphans()  # a second host, which outlives the first
    disown_orphans()
    assert is_subreaper()
    disown_orphans()
    assert is_subreaper() == before
