"""Which artifacts are ready ahead, held against the exact optimum: closed, within the caps, near the best."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from dataflower.core.device.artifact import HOST, Candidate, Key, Kind, is_closed
from dataflower.core.device.knapsack import changes, choose
from dataflower.core.device.offload import offload

GPU = "gpu"
FUNCTIONS = ("f", "g", "h")

sizes = st.integers(1, 20)
delays = st.integers(0, 20).map(float)
users = st.sets(st.sampled_from(FUNCTIONS), min_size=1).map(lambda names: tuple(sorted(names)))


@st.composite
def chains(draw: st.DrawFn) -> list[Candidate]:
    """A library, a backbone in two places, adapters and kernels behind it: at most 10 candidates."""
    library = Candidate("library", Kind.LIBRARY, HOST, draw(sizes), draw(delays), FUNCTIONS)
    found = [library]
    saved = draw(delays)
    for place in (HOST, GPU):
        found.append(Candidate("backbone", Kind.BACKBONE, place, draw(sizes), saved, FUNCTIONS, ((library.key,),)))
        saved += draw(delays)
    for name in draw(st.sets(st.sampled_from(FUNCTIONS), min_size=1)):
        adapter = Candidate(
            f"adapter {name}", Kind.ADAPTER, GPU, draw(sizes), draw(delays), (name,), ((("backbone", GPU),),)
        )
        found.append(adapter)
        if draw(st.booleans()):
            kernels = (f"kernels {name}", Kind.KERNELS, GPU, draw(sizes), draw(delays), (name,), ((adapter.key,),))
            found.append(Candidate(*kernels))
    return found


@st.composite
def flat(draw: st.DrawFn) -> list[Candidate]:
    """Anything that needs anything before it, one place."""
    found: list[Candidate] = []
    for number in range(draw(st.integers(1, 8))):
        options = st.sampled_from([(c.key,) for c in found]) if found else st.nothing()
        needs = draw(st.lists(options, max_size=2)) if found else []
        kind = draw(st.sampled_from(list(Kind)))
        found.append(Candidate(f"a{number}", kind, HOST, draw(sizes), draw(delays), draw(users), tuple(needs)))
    return found


problems = st.tuples(
    st.one_of(chains(), flat()),
    st.fixed_dictionaries({name: st.integers(0, 5).map(float) for name in FUNCTIONS}),
    st.fixed_dictionaries({HOST: st.integers(0, 60), GPU: st.integers(0, 60)}),
)


def is_allowed(keys: tuple[Key, ...], candidates: dict[Key, Candidate], caps: dict[str, int]) -> bool:
    used = dict.fromkeys(caps, 0)
    for key in keys:
        used[key[1]] += candidates[key].nbytes
    alone = len({artifact for artifact, _ in keys}) == len(keys)
    return alone and is_closed(keys, candidates) and all(used[place] <= caps[place] for place in caps)


def optimum(candidates: dict[Key, Candidate], rates: dict[str, float], caps: dict[str, int]) -> float:
    """By trying every set."""
    return max(
        sum(candidates[key].value(rates) for key in keys)
        for count in range(len(candidates) + 1)
        for keys in itertools.combinations(candidates, count)
        if is_allowed(keys, candidates, caps)
    )


@given(problems)
def test_choice_is_allowed_and_at_least_half_of_the_best(
    problem: tuple[list[Candidate], dict[str, float], dict[str, int]],
) -> None:
    listed, rates, caps = problem
    candidates = {candidate.key: candidate for candidate in listed}
    choice = choose(listed, rates, caps)
    assert is_allowed(choice.keys, candidates, caps)
    best = optimum(candidates, rates, caps)
    assert choice.value <= best + 1e-9
    assert choice.value >= 0.5 * best - 1e-9
    there: set[Key] = set()
    for key in choice.keys:  # each can be loaded when its turn comes
        there.add(key)
        assert is_closed(there, candidates)


@given(problems, st.randoms(use_true_random=False))
def test_changes_lead_from_one_to_the_other_without_a_gap(
    problem: tuple[list[Candidate], dict[str, float], dict[str, int]], random: object
) -> None:
    listed, rates, caps = problem
    candidates = {candidate.key: candidate for candidate in listed}
    half = {place: cap // 2 for place, cap in caps.items()}
    held = set(choose(listed, {**rates, "f": 9.0}, half).keys)
    wanted = choose(listed, rates, caps, held)
    leave, load = changes(held, wanted.keys, candidates, rates)
    assert held.difference(leave).union(load) == set(wanted.keys)
    places = {artifact for artifact, _ in wanted.keys}
    for key in leave:
        held.discard(key)
        if not any(artifact == key[0] for artifact in places):
            assert is_closed(held, candidates)


@given(problems, st.integers(1, 60), st.integers(0, 30))
def test_offloading_frees_enough_and_nothing_that_is_in_use(
    problem: tuple[list[Candidate], dict[str, float], dict[str, int]], need: int, host_free: int
) -> None:
    listed, rates, caps = problem
    candidates = {candidate.key: candidate for candidate in listed}
    loaded = {key: candidates[key] for key in choose(listed, rates, caps).keys}
    there = {key: c for key, c in loaded.items() if key[1] == GPU}
    pinned = [key for key in there if key[0].startswith("adapter")][:1]
    fixed = {*pinned, ("backbone", GPU)} if pinned else set()
    leaving = offload(loaded, rates, GPU, need, pinned=pinned, host_free=host_free)
    room = sum(c.nbytes for key, c in there.items() if key not in fixed)
    if leaving is None:
        assert room < need
        return
    gone = [step.key for step in leaving]
    freed = sum(there[key].nbytes for key in gone)
    assert freed >= need
    assert not fixed.intersection(gone)
    left = dict(loaded)
    for key in gone:  # leaves first: nobody loses what it needs before it goes itself
        del left[key]
        assert is_closed(left, candidates)
    assert sum(there[step.key].nbytes for step in leaving if step.to_host) <= host_free
    assert not any(step.to_host and there[step.key].kind is Kind.KERNELS for step in leaving)
    for key in gone:  # nothing goes for nothing
        lost = any(option in gone for options in candidates[key].needs for option in options)
        assert lost or freed - there[key].nbytes < need


@given(problems, st.floats(0, 200))
def test_nothing_is_ready_for_the_sake_of_what_is_worth_too_little(
    problem: tuple[list[Candidate], dict[str, float], dict[str, int]], least: float
) -> None:
    listed, rates, caps = problem
    candidates = {candidate.key: candidate for candidate in listed}
    keys = set(choose(listed, rates, caps, least=least).keys)
    worthy = {key for key in keys if candidates[key].value(rates) > least}
    todo = set(worthy)
    while todo:
        todo = {o for k in todo for options in candidates[k].needs for o in options if o in keys} - worthy
        worthy |= todo
    assert worthy == keys
