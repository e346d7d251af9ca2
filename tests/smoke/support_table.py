"""What combines with what, as the README shows it: for each feature and framework the cell that proves it.

    ./bazelw run //tests/smoke:support      writes the table into README.md anew

Nothing is said here by hand. A cell of the table is what blocks a change on a CPU (and so was proven on the machine of
whoever merged), or what a night runs if all of it is slow, or the word unproven where only accelerators are allowed to
run it, or the plan's reason for refusing.
"""

import os
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from tests.smoke import settings
from tests.smoke.covering import depths
from tests.smoke.matrix import Cell, Matrix
from training.plan import Refusal

REFRESH = "./bazelw run //tests/smoke:support"
README = "README.md"
BEGIN = f"<!-- Support table, written by `{REFRESH}` -->"
END = "<!-- End of the support table -->"


def table(matrix: Matrix, depth: Mapping[Cell, str]) -> str:
    """A row for each feature, a column for each framework and what refusals expect; how many cells; other settings.

    Of the first recipe, which is the one that is proven with each single feature. `depth` is `depths(matrix)`.
    """
    frameworks = list(matrix.tables.frameworks)
    lines = [
        "| | " + " | ".join([*frameworks, "refused elsewhere, since"]) + " |",
        "|---" * (len(frameworks) + 2) + "|",
    ]
    for feature in (None, *matrix.tables.features):
        entries = [_entry(matrix, depth, framework, feature) for framework in frameworks]
        reasons = dict.fromkeys(
            f"`{each.field}` needs {each.expected}" for each in entries if isinstance(each, Refusal)
        )
        said = [each if isinstance(each, str) else "refused" for each in entries]
        lines.append(f"| {feature or '*nothing switched on*'} | " + " | ".join([*said, "; ".join(reasons)]) + " |")
    return "\n".join([*lines, "", _counts(matrix, depth), "", settings.table()])


def _counts(matrix: Matrix, depth: Mapping[Cell, str]) -> str:
    """How many cells there are of each kind, in a sentence."""
    counts = Counter((cell.variant, each) for cell, each in depth.items())
    alike: dict[tuple[int, int], list[str]] = {}
    for variant in matrix.tables.variants:
        alike.setdefault((counts[variant, "blocking"], counts[variant, "full"]), []).append(variant)
    allowed = "; each of ".join(
        f"{', '.join(variants)}: {blocking} that block a change and {full:,} more at full depth"
        for (blocking, full), variants in alike.items()
    )
    return f"Cells allowed: {allowed}. Refused, each with the plan's reason: {len(matrix.refused):,}."


def _entry(matrix: Matrix, depth: Mapping[Cell, str], framework: str, feature: str | None) -> str | Refusal:
    """What is known of a feature under a framework."""
    features = (feature,) if feature else ()
    recipe = next(iter(matrix.tables.recipes))
    alike = [
        Cell(recipe, variant, framework, cards, features, matrix.tables)
        for variant, row in matrix.tables.variants.items()
        for cards in row.cards
    ]
    if proven := sorted({each.cards for each in alike if each.variant == "cpu" and depth.get(each) == "blocking"}):
        return " ".join(f"×{cards}" for cards in proven)
    if slow := sorted({each.cards for each in alike if each.variant == "cpu" and each in depth}):
        return f"at night {' '.join(f'×{cards}' for cards in slow)}"
    if any(each in depth for each in alike):
        return "unproven"
    # Of several reasons, the one that the most cells have: the others are about a number of cards.
    refusals = [matrix.refused[each] for each in alike]
    return max(refusals, key=refusals.count)


def with_table(readme: str, written: str) -> str:
    """The text with what stands between the two marks replaced.

    Raises:
        ValueError: a mark is not there once.
    """
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise ValueError(f"{README}: expected the lines {BEGIN!r} and {END!r}, once each")
    head, rest = readme.split(BEGIN)
    return f"{head}{BEGIN}\n{written}\n{END}{rest.split(END)[1]}"


def main() -> int:
    """Writes into the workspace that `bazel run` names."""
    path = Path(os.environ.get("BUILD_WORKSPACE_DIRECTORY", ".")) / README
    matrix = Matrix()
    written = table(matrix, depths(matrix))
    path.write_text(with_table(path.read_text(encoding="utf-8"), written), encoding="utf-8")
    print(f"{path}: table written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
