"""Tests of training/parallel."""
