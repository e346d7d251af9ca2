"""Causal language models: load them, run them on packed documents, adapt them, make tiny ones."""
