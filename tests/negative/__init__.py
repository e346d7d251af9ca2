"""Planted bugs, each with the guard that must turn red."""
