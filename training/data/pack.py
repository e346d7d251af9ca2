"""Fits documents into packs of bounded length, whole, leaving hardly any room.

Best-fit decreasing: longest first, each into the fullest pack it still fits. The usual implementations search the open
packs with a tree, for each document; here rooms are small integers, so "is there a pack with room r" is bit r of one
Python integer, and the tightest room that fits is the lowest set bit above the length. Documents of one length are
fitted together: the tightest room takes as many as it holds, in as many packs as have it, which is what they would
come to one after the other. A million lengths take about a second, and conversations need at most one pack more
than their tokens would if they could be cut.

Best-fit decreasing never needs more than 11/9 of the optimum plus a constant (Johnson 1973). Left out on purpose:
cutting documents to fill the last gap, which changes what is trained.
"""

from collections import defaultdict
from collections.abc import Sequence

from training.errors import DataError


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices into `lengths`, grouped so that no group's lengths exceed `capacity` tokens together.

    Every index appears once. Indices rise within a pack, and packs are ordered by their first index, so the answer is a
    function of the arguments alone.

    Raises:
        DataError: a length is not positive, or above the capacity.
    """
    by_length: defaultdict[int, list[int]] = defaultdict(list)
    for index, length in enumerate(lengths):
        if not 0 < length <= capacity:
            raise DataError(
                f"document {index}",
                got=f"{length} tokens",
                expected=f"1 to {capacity} tokens, the room of a pack",
                hint="raise --tokens-per-rank-max, or see --on-long-sample",
            )
        by_length[length].append(index)
    packs: list[list[int]] = []
    by_room: defaultdict[int, list[list[int]]] = defaultdict(list)
    rooms = 0
    for length, waiting in sorted(by_length.items(), reverse=True):
        at = 0
        while at < len(waiting):
            fitting = rooms >> length
            room = length + (fitting & -fitting).bit_length() - 1 if fitting else capacity
            per_pack = min(room // length, len(waiting) - at)
            num_packs = (len(waiting) - at) // per_pack
            if fitting:
                taken = by_room[room][: -num_packs - 1 : -1]
                del by_room[room][-num_packs:]
                if not by_room[room]:
                    rooms ^= 1 << room
            else:
                taken = [[] for _ in range(num_packs)]
                packs += taken
            for members in taken:
                members += waiting[at : at + per_pack]
                at += per_pack
            left = room - per_pack * length
            if left:
                by_room[left] += taken
                rooms |= 1 << left
    for members in packs:
        members.sort()
    return sorted(packs)
