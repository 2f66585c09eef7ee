"""One model, one process: everything that touches MLX. Knows `core` and `ipc`, and nothing else."""
