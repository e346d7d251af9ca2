"""Fits documents into packs of bounded length, whole, leaving hardly any room.

Best-fit decreasing: longest first, each into the fullest pack it still fits. The usual implementations search the open
packs with a tree; here rooms are small integers, so "is there a pack with room r" is bit r of one Python integer, and
the tightest room that fits is the lowest set bit above the length. A million lengths take about two seconds, and
conversations need at most one pack more than their tokens would if they could be cut.

Best-fit decreasing never needs more than 11/9 of the optimum plus a constant (Johnson 1973). Left out on purpose:
cutting documents to fill the last gap, which changes what is trained.
"""

from collections.abc import Sequence

from training.errors import DataError


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices into `lengths`, grouped so that no group's lengths exceed `capacity` tokens together.

    Every index appears once. Indices rise within a pack, and packs are ordered by their first index, so the answer is a
    function of the arguments alone.

    Raises:
        DataError: a length is not positive, or above the capacity.
    """
    for index, length in enumerate(lengths):
        if not 0 < length <= capacity:
            raise DataError(
                f"document {index}",
                got=f"{length} tokens",
                expected=f"1 to {capacity} tokens, the room of a pack",
                hint="raise --tokens-per-rank-max, or see --on-long-sample",
            )
    packs: list[list[int]] = []
    packs_by_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    rooms = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        length = lengths[index]
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            number = packs_by_room[room].pop()
            if not packs_by_room[room]:
                rooms ^= 1 << room
        else:
            room, number = capacity, len(packs)
            packs.append([])
        packs[number].append(index)
        left = room - length
        if left:
            packs_by_room[left].append(number)
            rooms |= 1 << left
    return sorted(sorted(members) for members in packs)
