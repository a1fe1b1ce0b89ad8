"""Where the boxes and lines of a picture go: layers from top to bottom, few crossings, no line through a box.

The classic four steps (after Sugiyama): ranks by longest path; a place of its own for every label, and for a line
in each rank that it passes; orders by barycentre sweeps; positions by least squares that keep order and distance.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import networkx as nx

_GAP = 22.0
"""Between neighbours of a rank."""
_RISE = 20.0
"""Between ranks; an edge has two, with its label between them."""
_SWEEPS = 12


@dataclass(frozen=True, slots=True)
class Size:
    """Of a box, or of a label."""

    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Place:
    """A box or label by its upper left corner."""

    x: float
    y: float
    width: float
    height: float

    @property
    def middle(self) -> float:
        """Of its width."""
        return self.x + self.width / 2


@dataclass(frozen=True, slots=True)
class Route:
    """A line: upper and lower end, in x and y, of each straight piece; curves join them. `label`: where it goes."""

    pieces: tuple[tuple[float, float, float], ...]
    """(x, from y, to y); the first and the last are the ends at the boxes."""
    label: Place | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """Everything placed, with room for it all from (0, 0) on."""

    width: float
    height: float
    boxes: Mapping[str, Place]
    routes: tuple[Route, ...]


@dataclass(slots=True)
class _Grid:
    """Vertices (boxes, labels, passages of lines) by rank; neighbours are one rank apart."""

    rank: dict[str, int] = field(default_factory=dict)
    size: dict[str, Size] = field(default_factory=dict)
    ranks: list[list[str]] = field(default_factory=list)
    above: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    below: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    chains: list[list[str]] = field(default_factory=list)
    """For each edge its vertices, from box to box."""
    labels: list[str | None] = field(default_factory=list)

    def add(self, key: str, rank: int, size: Size) -> None:
        self.rank[key] = rank
        self.size[key] = size
        while len(self.ranks) <= rank:
            self.ranks.append([])
        self.ranks[rank].append(key)


def lay_out(sizes: Mapping[str, Size], edges: Sequence[tuple[str, str, Size | None]]) -> Layout:
    """Place boxes (by key, in the order of the file) and edges (from, to, size of the label).

    Cycles are allowed: the edge that closes one is drawn upwards. An edge from a box to itself has an empty route.
    """
    grid = _grid(sizes, edges)
    _order(grid)
    x = _positions(grid)
    left = min((x[key] - grid.size[key].width / 2 for key in x), default=0.0)
    tops, bottoms = _bands(grid)
    places = {
        key: Place(
            x[key] - grid.size[key].width / 2 - left,
            (tops[rank] + bottoms[rank] - grid.size[key].height) / 2,
            grid.size[key].width,
            grid.size[key].height,
        )
        for key, rank in grid.rank.items()
    }
    width = max((place.x + place.width for place in places.values()), default=0.0)
    routes = tuple(
        _route(chain, label, places, grid, (tops, bottoms))
        for chain, label in zip(grid.chains, grid.labels, strict=True)
    )
    return Layout(width, bottoms[-1] if bottoms else 0.0, {key: places[key] for key in sizes}, routes)


def _ranks(sizes: Mapping[str, Size], edges: Sequence[tuple[str, str, Size | None]]) -> dict[str, int]:
    """Even numbers; what has no predecessor stands right above its first successor."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(sizes)
    graph.add_edges_from((source, target) for source, target, _ in edges if source != target)
    while not nx.is_directed_acyclic_graph(graph):  # a workflow under repair may still be drawn
        graph.remove_edges_from(nx.find_cycle(graph)[-1:])
    rank: dict[str, int] = {}
    for key in nx.topological_sort(graph):
        rank[key] = max((rank[before] + 2 for before in graph.predecessors(key)), default=0)
    for key in sizes:
        if not graph.in_degree(key) and graph.out_degree(key):
            rank[key] = min(rank[after] for after in graph.successors(key)) - 2
    return rank


def _grid(sizes: Mapping[str, Size], edges: Sequence[tuple[str, str, Size | None]]) -> _Grid:
    grid = _Grid()
    ranks = _ranks(sizes, edges)
    for key, size in sizes.items():
        grid.add(key, ranks[key], size)
    for number, (source, target, label) in enumerate(edges):
        first, last = sorted((ranks[source], ranks[target]))
        upper, lower = (source, target) if ranks[source] <= ranks[target] else (target, source)
        passages = [f"\0{number}:{rank}" for rank in range(first + 1, last)]
        for rank, key in enumerate(passages, first + 1):
            is_label = label is not None and rank == last - 1
            grid.add(key, rank, label if is_label and label is not None else Size(2.0, 0.0))
        chain = [upper, *passages, lower] if source != target else []
        for one, other in pairwise(chain):
            grid.below[one].append(other)
            grid.above[other].append(one)
        grid.chains.append(chain if upper == source else chain[::-1])
        grid.labels.append(passages[-1] if passages and label is not None else None)
    return grid


# --- order ----------------------------------------------------------------------------------------------------


def _order(grid: _Grid) -> None:
    best, crossings = [list(rank) for rank in grid.ranks], _crossings(grid)
    for sweep in range(_SWEEPS):
        if not crossings:
            break
        down = sweep % 2 == 0
        neighbours = grid.above if down else grid.below
        for rank in grid.ranks if down else reversed(grid.ranks):
            _sort_rank(grid, rank, neighbours)
        if (now := _crossings(grid)) < crossings:
            best, crossings = [list(rank) for rank in grid.ranks], now
    grid.ranks = best


def _sort_rank(grid: _Grid, rank: list[str], neighbours: Mapping[str, list[str]]) -> None:
    index = {key: i for row in grid.ranks for i, key in enumerate(row)}

    def center(key: str) -> float:
        beside = neighbours.get(key, [])
        return sum(index[other] for other in beside) / len(beside) if beside else index[key]

    rank.sort(key=center)


def _crossings(grid: _Grid) -> int:
    count = 0
    for upper, lower in pairwise(grid.ranks):
        index = {key: i for i, key in enumerate(lower)}
        seen: list[int] = []
        for key in upper:
            ends = sorted(index[other] for other in grid.below.get(key, ()))
            count += sum(len(seen) - bisect_right(seen, end) for end in ends)
            for end in ends:
                insort(seen, end)
    return count


# --- position -------------------------------------------------------------------------------------------------


def _positions(grid: _Grid) -> dict[str, float]:
    """Middle of each vertex: as near to its neighbours as order and distance allow."""
    x: dict[str, float] = {}
    for rank in grid.ranks:
        x.update(zip(rank, _settle(grid, rank, lambda _: 0.0), strict=True))
    for sweep in range(2 * _SWEEPS):
        down = sweep % 2 == 0
        neighbours = grid.above if down else grid.below
        last = sweep >= 2 * _SWEEPS - 2  # in the end both sides count

        def wish(key: str, near: Mapping[str, list[str]] = neighbours, both: bool = last) -> float:
            beside = [*grid.above.get(key, ()), *grid.below.get(key, ())] if both else near.get(key, [])
            weights = [8.0 if _is_passage(key) and _is_passage(other) else 1.0 for other in beside]
            wishes = sum(x[other] * weight for other, weight in zip(beside, weights, strict=True))
            return wishes / sum(weights) if beside else x[key]

        for rank in grid.ranks if down else reversed(grid.ranks):
            x.update(zip(rank, _settle(grid, rank, wish), strict=True))
    return x


def _is_passage(key: str) -> bool:
    return key.startswith("\0")


def _settle(grid: _Grid, rank: Sequence[str], wish: Callable[[str], float]) -> list[float]:
    """Least squares under order and distance: isotonic regression by pooling adjacent violators."""
    offsets: list[float] = []
    offset = before = 0.0
    for key in rank:
        half = grid.size[key].width / 2
        offset += before + _GAP + half if offsets else 0.0
        offsets.append(offset)
        before = half
    pools: list[tuple[float, float, int]] = []  # sum of weighted wishes, weight, how many
    for key, own in zip(rank, offsets, strict=True):
        weight = 8.0 if _is_passage(key) else 1.0  # lines would rather be straight
        pools.append((weight * (wish(key) - own), weight, 1))
        while len(pools) > 1 and pools[-2][0] * pools[-1][1] >= pools[-1][0] * pools[-2][1]:
            (a, b, n), (c, d, m) = pools[-2:]
            pools[-2:] = [(a + c, b + d, n + m)]
    level = [total / weight for total, weight, count in pools for _ in range(count)]
    return [base + own for base, own in zip(level, offsets, strict=True)]


def _bands(grid: _Grid) -> tuple[list[float], list[float]]:
    """Top and bottom of each rank."""
    tops: list[float] = []
    bottoms: list[float] = []
    y = 0.0
    for rank in grid.ranks:
        tops.append(y)
        bottoms.append(y + max((grid.size[key].height for key in rank), default=0.0))
        y = bottoms[-1] + _RISE
    return tops, bottoms


def _route(
    chain: Sequence[str],
    label: str | None,
    places: Mapping[str, Place],
    grid: _Grid,
    bands: tuple[list[float], list[float]],
) -> Route:
    if not chain:
        return Route(())
    tops, bottoms = bands
    downwards = grid.rank[chain[0]] < grid.rank[chain[-1]]
    pieces = []
    for key in chain:
        place, rank = places[key], grid.rank[key]
        top, bottom = (place.y, place.y + place.height) if key in (chain[0], chain[-1]) else (tops[rank], bottoms[rank])
        pieces.append((place.middle, top, bottom) if downwards else (place.middle, bottom, top))
    x, _, y = pieces[0]
    pieces[0] = (x + _spread(chain[0], chain[1], places, grid), y, y)
    x, y, _ = pieces[-1]
    pieces[-1] = (x + _spread(chain[-1], chain[-2], places, grid), y, y)
    return Route(tuple(pieces), None if label is None else places[label])


def _spread(key: str, other: str, places: Mapping[str, Place], grid: _Grid) -> float:
    """Lines that leave (or reach) a box on one side do so side by side, in the order of where they go."""
    side = grid.below[key] if grid.rank[other] > grid.rank[key] else grid.above[key]
    order = sorted(side, key=lambda near: places[near].middle)
    step = min(22.0, places[key].width * 0.6 / len(order))
    return (order.index(other) - (len(order) - 1) / 2) * step
