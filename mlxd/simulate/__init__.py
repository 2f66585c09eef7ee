"""Policies tried out on a virtual clock: policies/tests/*.yaml, and recorded
traffic (traffic/), against the daemon's decisions.
"""
