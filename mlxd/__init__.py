"""mlxd serves language models with Apple's MLX the way a database serves data."""

__version__ = "0.1.0"
