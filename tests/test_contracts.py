"""Contracts that import-linter cannot see: it knows a package from outside by its name alone."""

from __future__ import annotations

import ast

from tests.support.sources import Source, sources

GENERATOR = ("BatchGenerator", "GenerationBatch", "PromptProcessingBatch")
NAMES_THE_GENERATOR = {
    "worker/batch.py",
    "worker/prefiller.py",
    "worker/raw.py",
    "worker/together.py",
}
TAKES_FROM_MLX_LM_GENERATE = {
    "worker/batch.py": {"GenerationBatch", "PromptProcessingBatch"},
    "worker/mlx_engine.py": {"generation_stream"},
    "worker/prefiller.py": {"PromptProcessingBatch", "StopSequences"},
    "worker/raw.py": {"BatchGenerator"},
    "worker/serial.py": {"generate_step", "generation_stream"},
    "worker/together.py": {"PromptProcessingBatch"},
    "worker/assembly.py": {"generation_stream"},
    "worker/reading.py": {"generation_stream"},
    "worker/markup.py": {"TextStateMachine"},
    "worker/quantised.py": {"maybe_quantize_kv_cache"},
}


def identifiers(source: Source) -> set[str]:
    """Every name that code uses; what stands in comments and docstrings does not count."""
    return {
        *(node.id for node in source.nodes(ast.Name)),
        *(node.attr for node in source.nodes(ast.Attribute)),
        *(node.name for node in source.nodes(ast.alias)),
    }


def taken_from(source: Source, module: str) -> set[str]:
    if not source.says(module):
        return set()
    return {
        alias.name
        for node in source.nodes(ast.ImportFrom)
        if node.module == module
        for alias in node.names
    }


def test_few_files_name_the_batches_of_the_generator() -> None:
    """Its interface has changed with every release."""
    naming = {
        source.name
        for source in sources()
        if source.says(*GENERATOR) and identifiers(source) & set(GENERATOR)
    }
    assert naming == NAMES_THE_GENERATOR


def test_what_is_taken_from_mlx_lms_generation_is_written_down() -> None:
    taken = {
        source.name: names
        for source in sources()
        if (names := taken_from(source, "mlx_lm.generate"))
    }
    assert taken == TAKES_FROM_MLX_LM_GENERATE


def test_nothing_imports_the_module_that_its_own_function_hides() -> None:
    """`import mlx_lm.generate as g` gives the function, which the package exports by that name."""
    for source in sources():
        if source.says("mlx_lm"):
            plain = {alias.name for node in source.nodes(ast.Import) for alias in node.names}
            assert "mlx_lm.generate" not in plain, source.name
            assert "generate" not in taken_from(source, "mlx_lm"), source.name


def test_one_file_reads_the_wall_clock() -> None:
    """Dates are for people, and come from `Clock.wall`; a duration from there would jump."""
    readers = {"time", "time_ns", "now", "utcnow", "today", "localtime", "gmtime"}
    reading = {
        source.name
        for source in sources()
        if source.says(*(f".{reader}" for reader in readers))
        for node in source.nodes(ast.Attribute)
        if node.attr in readers
        and isinstance(node.value, ast.Name)
        and node.value.id in {"time", "datetime", "date"}
        and node not in _of_a_given_moment(source)
    }
    assert reading == {"core/clock.py"}


def _of_a_given_moment(source: Source) -> list[ast.expr]:
    """What is called with a moment reads no clock."""
    calls = [node for node in source.nodes(ast.Call) if node.args]
    names = {"localtime", "gmtime"}
    return [
        node.func
        for node in calls
        if isinstance(node.func, ast.Attribute) and node.func.attr in names
    ]
