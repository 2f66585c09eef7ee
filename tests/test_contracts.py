"""Contracts that import-linter cannot see: it knows a package from outside by its name alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import mlxd

PACKAGE = Path(mlxd.__file__).parent
GENERATOR = ("BatchGenerator", "GenerationBatch", "PromptProcessingBatch")
NAMES_THE_GENERATOR = {"worker/batch.py", "worker/prefiller.py", "worker/raw.py"}
TAKES_FROM_MLX_LM_GENERATE = {
    "worker/batch.py": {"GenerationBatch"},
    "worker/mlx_engine.py": {"generation_stream"},
    "worker/prefiller.py": {"PromptProcessingBatch", "StopSequences"},
    "worker/raw.py": {"BatchGenerator"},
    "worker/serial.py": {"generate_step", "generation_stream"},
    "worker/assembly.py": {"generation_stream"},
    "worker/reading.py": {"generation_stream"},
    "worker/markup.py": {"TextStateMachine"},
    "worker/quantised.py": {"maybe_quantize_kv_cache"},
}


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield str(path.relative_to(PACKAGE)), ast.parse(path.read_text(encoding="utf-8"))


def identifiers(tree: ast.Module) -> set[str]:
    """Every name that code uses; what stands in comments and docstrings does not count."""
    names: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name):
                names.add(name)
            case _:
                pass
    return names


def taken_from(tree: ast.Module, module: str) -> set[str]:
    return {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == module
        for alias in node.names
    }


def test_few_files_name_the_batches_of_the_generator() -> None:
    """Its interface has changed with every release."""
    naming = {name for name, tree in modules() if identifiers(tree) & set(GENERATOR)}
    assert naming == NAMES_THE_GENERATOR


def test_what_is_taken_from_mlx_lms_generation_is_written_down() -> None:
    taken = {
        name: names for name, tree in modules() if (names := taken_from(tree, "mlx_lm.generate"))
    }
    assert taken == TAKES_FROM_MLX_LM_GENERATE


def test_nothing_imports_the_module_that_its_own_function_hides() -> None:
    """`import mlx_lm.generate as g` gives the function, which the package exports by that name."""
    for name, tree in modules():
        plain = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        assert "mlx_lm.generate" not in plain, name
        assert "generate" not in taken_from(tree, "mlx_lm"), name


def test_one_file_reads_the_wall_clock() -> None:
    """Dates are for people, and come from `Clock.wall`; a duration from there would jump."""
    readers = {"time", "time_ns", "now", "utcnow", "today", "localtime", "gmtime"}
    reading = {
        name
        for name, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr in readers
        and isinstance(node.value, ast.Name)
        and node.value.id in {"time", "datetime", "date"}
        and node not in _of_a_given_moment(tree)
    }
    assert reading == {"core/clock.py"}


def _of_a_given_moment(tree: ast.AST) -> list[ast.expr]:
    """What is called with a moment reads no clock."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args]
    names = {"localtime", "gmtime"}
    return [
        node.func
        for node in calls
        if isinstance(node.func, ast.Attribute) and node.func.attr in names
    ]
