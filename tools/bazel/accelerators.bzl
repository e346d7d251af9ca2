"""The closed table of accelerators, tiers and tags. A word that is not here fails when a BUILD file is loaded."""

# Accelerator -> everything that follows from naming it: a new one is a row here, and a probe in tools/devices/detect.py.
#   cards       numbers of cards that a test may ask for; each has a constraint and a pool of its own
#   config      its word in --config=, and the name of its platforms
#   device      torch's name for it; ROCm builds of torch say `cuda` too
#   device_files  what a process needs of /dev; `*` stands for any numbers and names
#   driver      the oldest version of the maker's driver that its build of torch runs on, where the maker says one
#   hidden      variables that keep its cards from a test of the cpu, on whose machine they may be
#   lock        the wheels, from the root
#   memory_gib  what a card must have at least
#   resource    what a pod of Kubernetes asks for, by the maker's device plugin
#   runtime     what hands cards to a container, where the maker has such a thing; else its device files are
#   torch       the field of torch.version that its build of torch sets
#   visible     the variable by which a process is given some of the cards
ACCELERATORS = {
    "cpu": struct(
        cards = [],
        config = "",
        device = "cpu",
        device_files = [],
        driver = "",
        hidden = {},
        lock = "requirements_lock.txt",
        meaning = "no accelerator; runs anywhere",
        memory_gib = 0,
        resource = "",
        runtime = "",
        torch = "",
        visible = "",
    ),
    "gpu-amd": struct(
        cards = [1, 4],
        config = "rocm",
        device = "cuda",
        device_files = ["/dev/kfd", "/dev/dri"],
        driver = "",
        hidden = {"HIP_VISIBLE_DEVICES": "-1"},
        lock = "requirements_lock_rocm.txt",
        meaning = "an AMD GPU with ROCm",
        memory_gib = 15,
        resource = "amd.com/gpu",
        runtime = "",
        torch = "hip",
        visible = "ROCR_VISIBLE_DEVICES",
    ),
    "gpu-intel": struct(
        cards = [1, 4],
        config = "xpu",
        device = "xpu",
        device_files = ["/dev/dri"],
        driver = "",
        hidden = {"ONEAPI_DEVICE_SELECTOR": "*:cpu"},
        lock = "requirements_lock_xpu.txt",
        meaning = "an Intel GPU with oneAPI",
        memory_gib = 15,
        resource = "gpu.intel.com/xe",
        runtime = "",
        torch = "xpu",
        visible = "ZE_AFFINITY_MASK",
    ),
    "gpu-nvidia": struct(
        cards = [1, 4],
        config = "cuda",
        device = "cuda",
        device_files = ["/dev/nvidia*"],
        # Of CUDA 13, by NVIDIA's table of minor version compatibility.
        driver = "580",
        hidden = {"CUDA_VISIBLE_DEVICES": "-1"},
        lock = "requirements_lock_cuda.txt",
        meaning = "an NVIDIA GPU with CUDA",
        memory_gib = 15,
        resource = "nvidia.com/gpu",
        runtime = "nvidia",
        torch = "cuda",
        visible = "CUDA_VISIBLE_DEVICES",
    ),
}

TIERS = {
    "benchmark": "that tuning produces a good model",
    "lint": "style, types and floors",
    "negative": "that tests turn red: each planted bug is seen by its guard",
    "smoke": "set-up, checkpoint and tear-down of real runs",
    "subsystem": "units together, on any machine",
    "unit": "the smallest units, on any machine",
}

# Tags that a BUILD file may add by hand; the macros add tier, accelerator and `multi-gpu` themselves.
TAGS = {
    "manual": "left out of `...`: run by name, or by another test",
    "material": "for another test to run, a bench to time, or a cluster to carry: proves nothing of the code by passing, and no lane of CI need run it",
}

def tag_error(tags):
    """What is wrong with hand-written tags.

    Args:
        tags: list of strings from a BUILD file.

    Returns:
        A message with advice, or None.
    """
    for tag in tags:
        if tag in ACCELERATORS:
            return "tag {}: accelerators are not tags. hint: accelerators = [\"{}\"]".format(repr(tag), tag)
        if tag in TIERS:
            return "tag {}: the tier follows from the package. hint: move the target below //tests/{}".format(repr(tag), tag)
        if tag not in TAGS:
            return "tag {}: unknown; expected one of {}. hint: add it to TAGS in tools/bazel/accelerators.bzl with a sentence".format(
                repr(tag),
                ", ".join(sorted(TAGS)),
            )
    return None

def accelerator_error(accelerators):
    """What is wrong with a list of accelerators.

    Args:
        accelerators: list of strings from a BUILD file.

    Returns:
        A message with advice, or None.
    """
    if not accelerators:
        return "accelerators: empty. hint: leave the attribute out for [\"cpu\"]"
    for index, accelerator in enumerate(accelerators):
        if accelerator not in ACCELERATORS:
            return "accelerators: {} is unknown; expected some of {}".format(repr(accelerator), ", ".join(ACCELERATORS))
        if accelerator in accelerators[:index]:
            return "accelerators: {} is named twice".format(repr(accelerator))
    return None

def pool_of(accelerator, cards):
    """The pool whose machines have so many cards: also the name of the constraint that a platform with them holds.

    Args:
        accelerator: its word in the table.
        cards: one of the numbers in its row; none on the cpu.

    Returns:
        `cpu`, `gpu-amd`, `gpu-amd-x4` and the like.
    """
    return accelerator if cards <= 1 else "{}-x{}".format(accelerator, cards)

def pools():
    """Every pool there may be.

    Returns:
        A dict from its name to a struct of accelerator and cards, the cpu's first.
    """
    return {
        pool_of(accelerator, cards): struct(accelerator = accelerator, cards = cards)
        for accelerator, row in ACCELERATORS.items()
        for cards in row.cards or [0]
    }

def route_error(accelerators, route):
    """What is wrong with a pool that a test is sent to to show the way.

    Args:
        accelerators: what the test runs on.
        route: the pool; none if it is empty.

    Returns:
        A message with advice, or None.
    """
    if not route:
        return None
    if route not in pools() or not pools()[route].cards:
        return "route: {}; expected one of {}".format(repr(route), ", ".join([name for name, each in pools().items() if each.cards]))
    if accelerators != ["cpu"]:
        return "route: {} of a test for {}; expected one of the cpu. hint: a test for cards goes to their pool by itself".format(repr(route), ", ".join(accelerators))
    return None

def farm_fingerprints(farm, accelerators):
    """What the results of a farm's accelerators are filed under.

    Args:
        farm: parts with `;` between them: `gpu-amd=KIND` for each accelerator whose cards are named, as a worker says it,
            so that the runner compares; and a word for all others, which is theirs to change when their cards change.
        accelerators: those that have cards.

    Returns:
        A dict from each accelerator to its kind of card, or to `farm:` and the word.
    """
    named, word = {}, []
    for part in farm.split(";"):
        accelerator, said, kind = part.partition("=")
        if said and accelerator.strip() not in accelerators:
            fail("PLUMBLINE_FARM: {}: expected some of {}, or a word without =".format(repr(part), ", ".join(list(accelerators))))
        if said:
            named[accelerator.strip()] = kind.strip()
        else:
            word.append(part.strip())
    return {each: named.get(each, "farm:" + " ".join(word)) for each in accelerators}

def cards_error(accelerators, cards):
    """What is wrong with a number of cards.

    Args:
        accelerators: what the test runs on.
        cards: how many cards it asks for.

    Returns:
        A message with advice, or None.
    """
    for accelerator in accelerators:
        known = ACCELERATORS[accelerator].cards
        if known and cards not in known:
            return "cards: {} of {}; expected one of {}. hint: add a pool to tools/bazel/accelerators.bzl".format(
                cards,
                accelerator,
                ", ".join([str(each) for each in known]),
            )
    if cards != 1 and not [each for each in accelerators if ACCELERATORS[each].cards]:
        return "cards: {}, and no accelerator that has any. hint: accelerators = [\"gpu-nvidia\"]".format(cards)
    return None

def tier_of(package):
    """The tier of a test, from where it lives.

    Args:
        package: package path, such as `tests/unit/training`.

    Returns:
        The tier's name, or None if tests do not belong there.
    """
    parts = package.split("/")
    if parts[0] == "tests" and len(parts) > 1 and parts[1] in TIERS:
        return parts[1]
    if package == "tools/lint":
        return "lint"
    return None
