"""Wiring: each recipe reads aloud from top to bottom."""
