"""Packs of many documents, kept whole, by the toolkit's packer."""

import argparse

from tests.benchmark.speed.work import PACK_CAPACITY, cost_of, lengths_to_pack, packs_check, tell
from training.data.pack import pack


def main() -> None:
    """Measures it for one number of documents."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--documents", type=int, required=True)
    lengths = lengths_to_pack(parser.parse_args().documents)
    cost = cost_of(lambda: pack(lengths, PACK_CAPACITY))
    packs = [[lengths[index] for index in members] for members in cost.result]
    tell(
        cost,
        len(lengths),
        packs_check(packs),
        packages=("numpy",),
        percent_full=100 * sum(lengths) / len(packs) / PACK_CAPACITY,
    )


if __name__ == "__main__":
    main()
