"""The table of MLX builds: well formed, and found by names as people type them."""

from __future__ import annotations

import re

import pytest

from mlxd.control.builds import shipped


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("qwen2.5-coder:32b", "mlx-community/Qwen2.5-Coder-32B-Instruct-4bit"),
        ("Qwen2.5-Coder:32B", "mlx-community/Qwen2.5-Coder-32B-Instruct-4bit"),
        ("qwen2.5-coder", "mlx-community/Qwen2.5-Coder-7B-Instruct-4bit"),
        ("qwen2.5-coder:latest", "mlx-community/Qwen2.5-Coder-7B-Instruct-4bit"),
        ("llama3.2:3b-8bit", "mlx-community/Llama-3.2-3B-Instruct-8bit"),
        ("llama3.2:3b-q8_0", "mlx-community/Llama-3.2-3B-Instruct-8bit"),
        ("llama3.2:3b-instruct-q8_0", "mlx-community/Llama-3.2-3B-Instruct-8bit"),
        ("llama3.2:3b-instruct-q4_K_M", "mlx-community/Llama-3.2-3B-Instruct-4bit"),
        ("llama3.2:3b-instruct-fp16", None),
        ("llama3.2:5b", None),
        ("nobody:7b", None),
        ("", None),
    ],
)
def test_a_name_stands_for_a_build(name: str, repository: str | None) -> None:
    assert shipped().repository(name) == repository


def test_what_is_near_is_sizes_of_the_family_else_other_names() -> None:
    assert shipped().near("llama3.2:5b") == ["llama3.2:1b", "llama3.2:3b"]
    assert "qwen2.5-coder:7b" in shipped().near("qwen2.5codr:7b")
    assert shipped().near("zzzz") == []


def test_every_entry_makes_the_name_of_a_repository() -> None:
    families = shipped().families
    assert len(families) > 20
    for name, family in families.items():
        assert family.latest in family.sizes, name
        for size in family.sizes:
            made = shipped().repository(f"{name}:{size}")
            assert made is not None
            assert re.fullmatch(r"[A-Za-z0-9-]+/[A-Za-z0-9._-]+-\d+bit(?:-MLX)?", made), made


def test_a_name_of_megabytes_is_compared_with_none(monkeypatch):
    def compared(*_, **__):
        raise AssertionError("it takes a second")

    monkeypatch.setattr("difflib.get_close_matches", compared)
    assert shipped().near("x" * 201) == []
