"""The packs of fill.py by TRL's packer, which keeps documents whole with its strategy `bfd`.

Tokens are of Arrow's type without values, so that what is measured is the packing and not the moving of tokens, which
the toolkit does later, batch by batch. `thousands` is TRL's default, a thousand documents at a time, and `whole` all at
once, as the toolkit does for a batch.
"""

import argparse

import numpy as np
import pyarrow
from datasets import Dataset, disable_progress_bars
from trl import pack_dataset

from tests.benchmark.speed.work import PACK_CAPACITY, cost_of, lengths_to_pack, packs_check, tell


def main() -> None:
    """Measures one way for one number of documents."""
    parser = argparse.ArgumentParser()
    parser.add_argument("way", choices=("thousands", "whole"))
    parser.add_argument("--documents", type=int, required=True)
    arguments = parser.parse_args()
    lengths = lengths_to_pack(arguments.documents)
    ends = np.cumsum([0, *lengths], dtype=np.int32)
    tokens = pyarrow.ListArray.from_arrays(pyarrow.array(ends), pyarrow.nulls(int(ends[-1])))
    documents = Dataset(pyarrow.table({"input_ids": tokens}))
    at_once = 1000 if arguments.way == "thousands" else None
    disable_progress_bars()
    cost = cost_of(
        lambda: pack_dataset(
            documents, PACK_CAPACITY, strategy="bfd", map_kwargs={"batch_size": at_once, "keep_in_memory": True}
        )
    )
    packs = list(cost.result["seq_lengths"])
    tell(
        cost,
        len(lengths),
        packs_check(packs),
        packages=("numpy", "datasets", "trl"),
        percent_full=100 * sum(lengths) / len(packs) / PACK_CAPACITY,
    )


if __name__ == "__main__":
    main()
