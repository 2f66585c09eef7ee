"""Exit statuses, as `mlxd --help` documents them."""

DONE = 0
FAILED = 1
USAGE = 2
BROKEN = 70
TAKEN = 75
