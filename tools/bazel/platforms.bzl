"""What follows from the table of accelerators for platforms: a constraint for each pool, a platform for each accelerator."""

load("//tools/bazel:accelerators.bzl", "ACCELERATORS", "pool_of", "pools")

def accelerator_constraints(name):
    """A constraint value for each pool: what a platform offers, and what a test needs or is skipped.

    Each has a setting of its own, since a machine with four cards has one as well, and may have cards of two makers.

    Args:
        name: of the filegroup that stands for the call, empty.
    """
    native.filegroup(name = name)
    for pool, each in pools().items():
        if each.cards:
            native.constraint_setting(name = pool + "_setting")
            native.constraint_value(
                name = pool,
                constraint_setting = pool + "_setting",
                visibility = ["//visibility:public"],
            )

def accelerator_platforms(name, here, default):
    """A platform for each accelerator, named as its --config, and `host`, the one without a --config.

    Who names an accelerator gets its tests for one card in any case, and where there is none they fail and say so. Those
    for more cards are incompatible where there are fewer: no one said that there were.

    Args:
        name: of the filegroup that stands for the call, empty.
        here: accelerator -> number of its cards in reach.
        default: the accelerator that `host` has; empty for none. One alone, since a process holds one build of torch.
    """
    native.filegroup(name = name)
    for accelerator, row in ACCELERATORS.items():
        if row.cards:
            _platform(row.config, {accelerator: max(here.get(accelerator, 0), 1)})
    _platform("host", {default: here[default]} if default else {})

def _platform(name, cards_of):
    native.platform(
        name = name,
        constraint_values = [
            "//tools/bazel:" + pool_of(accelerator, cards)
            for accelerator, there in cards_of.items()
            for cards in ACCELERATORS[accelerator].cards
            if cards <= there
        ],
        parents = ["@platforms//host"],
        visibility = ["//visibility:public"],
    )
