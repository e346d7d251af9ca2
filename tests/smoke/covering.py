"""Which allowed cells block a change: every pair of choices in some cell, and each feature alone on each framework.

Most faults of combination need two things to meet, not five (Kuhn, Wallace and Gallo, 2004), so an array that covers
all pairs finds them with a handful of cells where the full product has thousands. `allpairspy` makes the array. It is
greedy, and stops at the first cell that brings nothing new, so it can leave pairs out; what it leaves is added here,
and a test counts the pairs by itself.

The array is of the first recipe. Another recipe is in a pair with each framework, each number of cards, and the
features that its row says it meets; to pair it with all of them would prove the features again, at five times the cost.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from allpairspy import AllPairs

from tests.smoke.matrix import Cell, Matrix, can_be_said
from training.plan import Plan

Choice = tuple[str, Any]
"""What a cell has chosen: ("framework", "fsdp"), ("cards", 2), ("lora", True)."""

Pair = frozenset[Choice]


def choices(cell: Cell) -> tuple[Choice, ...]:
    """Everything that a cell chooses, in a fixed order; a feature that it leaves out is a choice as well."""
    switches = [(name, name in cell.features) for name in cell.tables.features]
    return (("recipe", cell.recipe), ("framework", cell.framework), ("cards", cell.cards), *switches)


def pairs(cell: Cell) -> Iterator[Pair]:
    """Each two of its choices, but for a recipe with a feature that it need not meet; of a slow cell none."""
    if cell.is_slow:
        return
    recipes = cell.tables.recipes
    is_first = cell.recipe == next(iter(recipes))
    left_out = {(name, True) for name in cell.features if not is_first and name not in recipes[cell.recipe].meets}
    for one, other in itertools.combinations(choices(cell), 2):
        if not (one[0] == "recipe" and other in left_out):
            yield frozenset((one, other))


def blocking(matrix: Matrix) -> list[Cell]:
    """The cells that block a change, variant by variant. Some have more features than any other cell of the matrix."""
    found: list[Cell] = []
    for variant in matrix.tables.variants:
        allowed = [cell for cell in matrix.allowed if cell.variant == variant]
        found += _covering(allowed) if allowed else []
    return found


def _covering(allowed: Sequence[Cell]) -> list[Cell]:
    """The cells of one variant."""
    chosen = list(alone(allowed))
    is_allowed = _Beginnings(allowed)
    first = [cell for cell in allowed if cell.recipe == next(iter(cell.tables.recipes)) and not cell.is_slow]
    columns = [list(dict.fromkeys(column)) for column in zip(*map(choices, first), strict=True)]
    before = [list(choices(cell)) for cell in chosen if cell in first]
    found = AllPairs(columns, filter_func=is_allowed, previously_tested=before)
    chosen += [_cell(allowed[0], each) for each in found]
    missing = {pair for cell in allowed for pair in pairs(cell)} - {pair for cell in chosen for pair in pairs(cell)}

    def num_new(cell: Cell) -> int:
        return len(missing.intersection(pairs(cell)))

    # Of each cell, what it would bring. Few cells bring anything, and fewer with each one that is chosen.
    new = {cell: missing.intersection(pairs(cell)) for cell in allowed}
    while missing:
        new = {cell: left for cell, brings in new.items() if (left := brings & missing)}
        best = max(new, key=lambda cell: len(new[cell]))
        without = best.tables.recipes[best.recipe].varies_with
        for name in (each for each in best.tables.features if each not in without):
            larger = _cell(best, [*choices(best), (name, True)])
            if num_new(larger) > num_new(best) and is_allowed(choices(larger)):
                best = larger
        chosen.append(best)
        missing -= set(pairs(best))
    return list(dict.fromkeys(chosen))


class _Beginnings:
    """Whether the first few choices of a cell are worth going on with; of all its choices, whether it is allowed."""

    def __init__(self, allowed: Sequence[Cell]) -> None:
        self._one = allowed[0]
        self._plain = {choices(cell)[:length] for cell in allowed for length in (1, 2)}
        self._known: dict[Cell, bool] = {}

    def __call__(self, begun: Sequence[Choice]) -> bool:
        if len(begun) < 3:
            return tuple(begun) in self._plain
        cell = _cell(self._one, begun)
        if cell not in self._known:
            sayable = can_be_said(cell.features, cell.tables.features)
            self._known[cell] = sayable and isinstance(cell.answer(), Plan)
        return self._known[cell]


def _cell(like: Cell, chosen: Sequence[Choice]) -> Cell:
    """The cell of the same variant with these choices, and without the features that nothing is said of."""
    given = dict(chosen)
    features = tuple(name for name in like.tables.features if given.get(name))
    return replace(like, recipe=given["recipe"], framework=given["framework"], cards=given["cards"], features=features)


def alone(allowed: Iterable[Cell]) -> Iterator[Cell]:
    """Each framework by itself with each recipe, and with each single feature that it allows under the first of them.

    On two ranks if there are such cells.
    """
    best: dict[tuple[str, str, tuple[str, ...]], Cell] = {}
    for cell in allowed:
        key = (cell.recipe, cell.framework, cell.features)
        num_max = 1 if cell.recipe == next(iter(cell.tables.recipes)) else 0
        if len(cell.features) <= num_max and not cell.is_slow and (key not in best or _is_better(cell, best[key])):
            best[key] = cell
    yield from best.values()


def _is_better(cell: Cell, than: Cell) -> bool:
    """Two ranks are the fewest that have something to tell each other."""
    return abs(cell.cards - 2) < abs(than.cards - 2)


def depths(matrix: Matrix) -> dict[Cell, str]:
    """`blocking` or `full` for each allowed cell."""
    first = blocking(matrix)
    return dict.fromkeys(matrix.allowed, "full") | dict.fromkeys(first, "blocking")
