"""Plumbline: a small, readable toolkit that fine-tunes language models and can prove what it did."""
