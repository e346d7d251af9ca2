"""Tests of training/algorithms."""
