"""Policies tried out on a virtual clock: policies/tests/*.yaml, against the daemon's decisions."""
