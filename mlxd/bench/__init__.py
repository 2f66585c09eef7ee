"""How fast a model is: what `mlxd bench` asks, and what it makes of the answers.

Standard library only: the benchmarks measure with it, too.
"""
