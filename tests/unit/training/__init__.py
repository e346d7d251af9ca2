"""Tests of training/, file for file."""
