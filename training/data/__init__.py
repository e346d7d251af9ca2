"""From a JSONL line to the tensors of one microbatch: read, render, pack, load."""
