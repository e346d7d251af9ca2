"""Tests of training/models."""
