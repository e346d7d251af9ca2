"""The reward of cells that learn from one: what a model of random weights gets now and then, and never quite."""


def share(prompt: object, completion: str, **others: object) -> float:
    """The share of letters and digits in a completion."""
    return sum(each.isalnum() for each in completion) / max(1, len(completion))
