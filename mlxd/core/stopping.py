"""How long a stop may take beyond what policies say of it."""

FREEING_SECONDS = 30.0
"""From SIGTERM to SIGKILL, for a worker that gives memory back all the while: killing a process
that frees wired memory can strand that until the machine starts anew.
"""
