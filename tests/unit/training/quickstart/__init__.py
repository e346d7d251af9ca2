"""Tests of training/quickstart."""
