"""The picture shows every cell: its curve in the part for losses or for rewards, and where it came out."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.benchmark.baselines import MISSED_REWARD
from tests.benchmark.picture import COLOURS, draw


def verdict(loss: float, name: str, metric: float, curve_is: str = "loss") -> dict[str, Any]:
    """As much of a verdict as is drawn."""
    curve = [{"step": step, "loss": loss / step, "gradient_norm": 1.0} for step in range(1, 50)]
    return {"curve": curve, "curve_is": curve_is, "metrics": {name: metric}, "metrics_before": {}}


def test_each_cell_has_its_colour_where_it_belongs(tmp_path: Path) -> None:
    path = tmp_path / "benchmark.png"
    found = {
        "one": [verdict(2.0, "exact_match", 0.9), verdict(2.1, "exact_match", 0.95)],
        "other": [verdict(20.0, "pairs_right", 0.1)],
        "rewarded": [verdict(0.9, "exact_match", 0.4, MISSED_REWARD)],
    }
    draw(found, path)
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    third = pixels.shape[1] / 3
    for colour, part in zip(COLOURS, (0, 0, 1), strict=False):
        wanted = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
        # Thin lines are drawn half transparent, so they are near the colour mixed with white.
        mixed = [round(0.75 * channel + 0.25 * 255) for channel in wanted]
        near = np.minimum(np.abs(pixels - mixed).max(axis=2), np.abs(pixels - wanted).max(axis=2)) < 24
        columns = np.flatnonzero(near.any(axis=0))
        assert third * part < columns.min() < third * (part + 1)
        assert columns.max() > third * 2
