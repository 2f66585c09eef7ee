"""The nouns of mlxd. Standard library only; every other room may import this one."""
