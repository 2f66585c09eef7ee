"""Recorded traffic, played against other policies on a virtual clock: by the daemon's own
decisions, with the service times that were measured.
"""
