"""The picture shows every cell: each has its colour in both halves."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.benchmark.picture import COLOURS, draw


def verdict(loss: float, exact_match: float) -> dict[str, Any]:
    """As much of a verdict as is drawn."""
    curve = [{"step": step, "loss": loss / step, "gradient_norm": 1.0} for step in range(1, 50)]
    return {"curve": curve, "metrics": {"exact_match": exact_match}}


def test_each_cell_has_its_colour_in_both_halves(tmp_path: Path) -> None:
    path = tmp_path / "benchmark.png"
    draw({"one": [verdict(2.0, 0.9), verdict(2.1, 0.95)], "other": [verdict(20.0, 0.1)]}, path)
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    for colour in COLOURS[:2]:
        wanted = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
        # Thin lines are drawn half transparent, so they are near the colour mixed with white.
        mixed = [round(0.75 * channel + 0.25 * 255) for channel in wanted]
        near = np.minimum(np.abs(pixels - mixed).max(axis=2), np.abs(pixels - wanted).max(axis=2)) < 24
        columns = np.flatnonzero(near.any(axis=0))
        assert columns.min() < pixels.shape[1] / 2 < columns.max()
