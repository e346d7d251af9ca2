"""Tests of the smallest units."""
