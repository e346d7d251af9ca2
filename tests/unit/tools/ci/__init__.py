"""Tests of tools/ci."""
