"""What follows from the table of accelerators and has to be checked in: configs, lanes of CI, and a table for people.

    ./bazelw run //tools/pools:table      writes them anew: between their marks, and whole files below tools/pools/farm/

The table is Starlark, for Bazel reads it first; its rows are calls and dictionaries that Python reads the same way.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tools.bazel.starlark import starlark
from tools.pools import manifests

REFRESH = "./bazelw run //tools/pools:table"
TABLE = "tools/bazel/accelerators.bzl"
BAZELRC = ".bazelrc"
DOCUMENT = "docs/pools.md"
WORKFLOW = ".github/workflows/ci.yml"
NIGHTLY = ".github/workflows/nightly.yml"
BEGIN, END = f"Accelerators, written by `{REFRESH}`", "End of the accelerators"
MARKS = {
    BAZELRC: (f"# {BEGIN}", f"# {END}"),
    WORKFLOW: (f"  # {BEGIN}", f"  # {END}"),
    NIGHTLY: (f"  # {BEGIN}", f"  # {END}"),
    DOCUMENT: (f"<!-- {BEGIN} -->", f"<!-- {END} -->"),
}


def stanzas(names: Mapping[str, Any]) -> str:
    """A config for each accelerator."""
    return "\n".join(
        f"# {row.meaning[0].upper()}{row.meaning[1:]}.\nbuild:{row.config} --platforms=//tools/pools:{row.config}"
        for row in names["ACCELERATORS"].values()
        if row.cards
    )


def lanes(names: Mapping[str, Any]) -> str:
    """A job for each accelerator: after what needs no card, where there are cards, and only for code of people here.

    The last one says which of them were skipped: a job that is skipped looks like one that passed.
    """
    ours = "(github.event_name == 'push' || github.event.pull_request.head.repo.full_name == github.repository)"
    cards = {accelerator: row for accelerator, row in names["ACCELERATORS"].items() if row.cards}
    jobs = [
        f"""\
  {accelerator}:
    needs: test
    if: contains(vars.PLUMBLINE_POOLS, '{accelerator}') && {ours}
    uses: ./.github/workflows/cards.yml
    with:
      accelerator: {accelerator}
      config: {row.config}"""
        for accelerator, row in cards.items()
    ]
    results = "\n".join(f"        {accelerator}=${{{{ needs.{accelerator}.result }}}}" for accelerator in cards)
    jobs.append(
        f"""\
  unproven:
    needs: [{", ".join(cards)}]
    if: always()
    runs-on: ubuntu-24.04
    timeout-minutes: 5
    env:
      RESULTS: >-
{results}
    steps:
      - name: Say what nobody proved
        run: |
          for each in $RESULTS; do
            if [[ $each == *=skipped ]]; then
              why="was skipped: no runner in the variable PLUMBLINE_POOLS, code of a fork, or what comes before failed"
              echo "- **${{each%=*}} is unproven.** Its lane $why." >> "$GITHUB_STEP_SUMMARY"
              echo "::warning title=${{each%=*}} is unproven::Its lane $why."
            fi
          done"""
    )
    return "\n\n".join(jobs)


def nights(names: Mapping[str, Any]) -> str:
    """The same for every cell of the accelerator, which may take until the next evening; then what all measured."""
    cards = {accelerator: row for accelerator, row in names["ACCELERATORS"].items() if row.cards}
    jobs = [
        f"""\
  {accelerator}:
    if: contains(vars.PLUMBLINE_POOLS, '{accelerator}')
    uses: ./.github/workflows/cards.yml
    with:
      accelerator: {accelerator}
      config: {row.config}
      targets: //tests/smoke:full.{accelerator}
      minutes: 1200"""
        for accelerator, row in cards.items()
    ]
    jobs.append(
        f"""\
  history:
    needs: [{", ".join(("test", *cards))}]
    if: always()
    uses: ./.github/workflows/history.yml"""
    )
    return "\n\n".join(jobs)


def document(names: Mapping[str, Any]) -> str:
    """The table for people."""
    lines = [
        "| `accelerators` | means | `--config` | pools | torch says | wheels | cards chosen by | a card has | driver |",
        "|---" * 9 + "|",
    ]
    for accelerator, row in names["ACCELERATORS"].items():
        pools = ", ".join(f"`{names['pool_of'](accelerator, cards)}`" for cards in row.cards or [0])
        config, visible = (f"`{each}`" if each else "" for each in (row.config, row.visible))
        memory = f"{row.memory_gib} GiB or more" if row.cards else ""
        driver = f"{row.driver} or newer" if row.driver else "any" if row.cards else ""
        entries = (f"`{accelerator}`", row.meaning, config, pools, f"`{row.device}`", f"`{row.lock}`", visible, memory)
        lines.append(f"| {' | '.join((*entries, driver))} |")
    return "\n".join(lines)


WRITERS = {BAZELRC: stanzas, WORKFLOW: lanes, NIGHTLY: nights, DOCUMENT: document}


def written(path: str, text: str, names: Mapping[str, Any]) -> str:
    """The text of a file with what stands between its marks replaced.

    Raises:
        ValueError: a mark is not there once.
    """
    begin, end = MARKS[path]
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"{path}: expected the lines {begin!r} and {end!r}, once each")
    head, rest = text.split(begin)
    return f"{head}{begin}\n{WRITERS[path](names)}\n{end}{rest.split(end)[1]}"


def locks(root: Path, names: Mapping[str, Any]) -> dict[str, str]:
    """The text of each lock of the table by its path."""
    return {row.lock: (root / row.lock).read_text(encoding="utf-8") for row in names["ACCELERATORS"].values()}


def main() -> int:
    """Writes into the workspace that `bazel run` names."""
    root = Path(os.environ.get("BUILD_WORKSPACE_DIRECTORY", "."))
    names = starlark((root / TABLE).read_text(encoding="utf-8"))
    for name in WRITERS:
        path = root / name
        path.write_text(written(name, path.read_text(encoding="utf-8"), names), encoding="utf-8")
        print(f"{path}: written")
    for name, text in manifests.files(names, locks(root, names)).items():
        (root / name).write_text(text, encoding="utf-8")
        print(f"{root / name}: written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
