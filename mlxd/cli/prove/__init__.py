"""`mlxd doctor --prove`: a daemon is shown to do here what it says, its worker's death included."""
