"""The closed table of accelerators, tiers and tags. A word that is not here fails when a BUILD file is loaded."""

# Accelerator -> what a target that names it needs. The device name is torch's; ROCm builds of torch say `cuda` too.
ACCELERATORS = {
    "cpu": struct(config = "", device = "cpu", meaning = "no accelerator; runs anywhere"),
    "gpu-amd": struct(config = "rocm", device = "cuda", meaning = "an AMD GPU with ROCm"),
    "gpu-intel": struct(config = "xpu", device = "xpu", meaning = "an Intel GPU with oneAPI"),
    "gpu-nvidia": struct(config = "cuda", device = "cuda", meaning = "an NVIDIA GPU with CUDA"),
}

TIERS = {
    "benchmark": "that tuning produces a good model",
    "lint": "style, types and floors",
    "negative": "that tests turn red: each planted bug is seen by its guard",
    "smoke": "set-up, checkpoint and tear-down of real runs",
    "subsystem": "units together, on any machine",
    "unit": "the smallest units, on any machine",
}

# Tags that a BUILD file may add by hand; the macros add tier and accelerator themselves.
TAGS = {
    "manual": "left out of `...`: run by name, or by another test",
    "multi-gpu": "needs more than one device",
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
