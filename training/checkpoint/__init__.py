"""State that survives the process: checkpoints to go on from, exports to use elsewhere."""
