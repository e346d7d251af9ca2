"""`./bazelw run //tools/bench:publish`: what was measured here, into the documents.

Adds the newest line of each case in `.plumbline/bench/train.jsonl` to `docs/speed.jsonl`, and from that file writes the
tables of docs/speed.md and README.md, between their marks, and docs/speed.png. With nothing new it writes them as they
are; a test holds the tables against the file.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tools.bench.kept import PUBLISHED, RUNS, Kept, append, newest, parts_table, ratio, read, table
from tools.bench.picture import draw, marks, stacks
from tools.bench.train import CASES

BEGIN = "<!-- {}, written by `./bazelw run //tools/bench:publish` -->"
END = "<!-- End of the {} -->"
RATIOS, FIGURES = "Speed ratios", "Speed figures"


def ratios_of(lines: Sequence[Kept]) -> str:
    """For the README: of each case its second contender beside the first."""
    rows = ["| what | beside | × | target |", "|---|---|---|---|"]
    for kept in lines:
        first, second, *_ = kept.rows
        alone = second.also.keys() - second.also_ratio.keys()
        said = [ratio(second.speed_ratio)]
        if "memory" in second.wanted:
            said.append(f"memory {second.memory_ratio.median:.2f}")
        said += [f"{key.replace('_', ' ')} {second.also[key]:.4g}" for key in second.wanted if key in alone]
        said += [f"{key.replace('_', ' ')} {ratio(each)}" for key, each in second.also_ratio.items()]
        wanted = ", ".join(
            f"{'' if key == 'speed' else key.replace('_', ' ') + ' '}{value:.3g}"
            for key, value in second.wanted.items()
        )
        verdict = "**missed**" if second.misses else second.target
        target = f"{wanted}: {verdict}" if wanted else ""
        rows.append(f"| {kept.says} | {first.contender} | {'; '.join(said)} | {target} |")
    return "\n".join(rows)


def figures_of(lines: Sequence[Kept]) -> str:
    """For docs/speed.md: all contenders, the parts of a step, and when and on what each case was measured."""
    parts = [text for kept in lines if (text := parts_table(kept.rows))]
    runs = ["| measured | cases | rounds | programs at once | machine |", "|---|---|---|---|---|"]
    for kept in lines:
        load = "not noted" if kept.load is None else f"{kept.load:g} on {kept.machine['cores']} cores"
        on = [kept.machine["processor"], f"Python {kept.machine['python']}"]
        on += [f"{name} {number}" for name, number in kept.versions.items()]
        runs.append(f"| {kept.when}, {kept.commit} | {kept.case} | {kept.num_rounds} | {load} | {', '.join(on)} |")
    return "\n\n".join([table([row for kept in lines for row in kept.rows]), *parts, "\n".join(runs)])


def between(document: str, name: str, text: str) -> str:
    """The document with what stands between the two marks of that name replaced.

    Raises:
        ValueError: a mark is not there once.
    """
    begin, end = BEGIN.format(name), END.format(name)
    for mark in (begin, end):
        if document.count(mark) != 1:
            raise ValueError(f"got {document.count(mark)} times {mark!r}; expected it once")
    before, _, rest = document.partition(begin)
    return f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}"


def documents(root: Path) -> dict[Path, str]:
    """By path, what README and docs/speed.md should say."""
    lines = newest(read(root / PUBLISHED), list(CASES))
    written = {"README.md": (RATIOS, ratios_of(lines)), "docs/speed.md": (FIGURES, figures_of(lines))}
    return {
        root / path: between((root / path).read_text(encoding="utf-8"), name, text)
        for path, (name, text) in written.items()
    }


def main() -> int:
    """Writes them."""
    root = Path(os.environ.get("BUILD_WORKSPACE_DIRECTORY", "."))
    known = {(each.case, each.when) for each in read(root / PUBLISHED)}
    for kept in newest(read(root / RUNS), list(CASES)):
        if (kept.case, kept.when) not in known:
            append(root / PUBLISHED, replace(kept, goes={}))
    for path, text in documents(root).items():
        path.write_text(text, encoding="utf-8")
    lines = newest(read(root / PUBLISHED), list(CASES))
    draw(marks(lines), root / "docs/speed.png", stacks(lines))
    print("written: README.md, docs/speed.md, docs/speed.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
