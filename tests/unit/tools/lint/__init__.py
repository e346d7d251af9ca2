"""Tests of the checks in tools/lint: each turns red on a planted tree and stays green on a good one."""
