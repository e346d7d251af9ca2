"""That tuning produces a good model: tasks, a battery of metrics, several seeds, baselines to compare with."""
