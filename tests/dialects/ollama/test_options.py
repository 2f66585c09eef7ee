"""Ollama's options."""

from __future__ import annotations

from typing import Any

import pytest

from mlxd.core.errors import InvalidRequest
from mlxd.core.request import Sampling
from mlxd.dialects.ollama.options import read_options


def test_nothing_said_is_nothing_known() -> None:
    options = read_options({})
    assert (options.sampling, options.max_tokens, options.stop) == (Sampling(), None, ())
    assert options.context is None


def test_every_runtime_option_arrives() -> None:
    options = read_options(
        {
            "seed": 7,
            "num_predict": 10,
            "top_k": 20,
            "top_p": 0.5,
            "min_p": 0.1,
            "repeat_last_n": 33,
            "temperature": 0.7,
            "repeat_penalty": 1.2,
            "presence_penalty": 1.5,
            "frequency_penalty": 1,
            "stop": ["\n", "user:", ""],
        }
    )
    assert options.sampling == Sampling(
        temperature=0.7,
        top_p=0.5,
        top_k=20,
        min_p=0.1,
        repeat_penalty=1.2,
        repeat_last_n=33,
        presence_penalty=1.5,
        frequency_penalty=1.0,
        seed=7,
    )
    assert (options.max_tokens, options.stop) == (10, ("\n", "user:"))


@pytest.mark.parametrize(
    ("name", "given", "meant"),
    [
        ("temperature", -1, 0.0),
        ("temperature", 1e300, 1e4),
        ("top_p", -1, 0.0),
        ("top_p", 2, 1.0),
        ("top_k", -1, 0),
        ("top_k", 40.9, 40),
        ("top_k", 10**12, 10**12),
        ("min_p", 7, 1.0),
        ("repeat_last_n", -1, -1),
        ("repeat_last_n", -5, -1),
        ("repeat_penalty", 0, 1.0),
        ("repeat_penalty", -2, 1.0),
        ("repeat_penalty", 1e-300, 1e-4),
        ("presence_penalty", -1e300, -1e4),
        ("seed", -1, None),
        ("seed", -1.0, None),
        ("seed", -2, 2**63 - 2),
        ("seed", 42.0, 42),
        ("temperature", None, None),
    ],
)
def test_what_lies_outside_means_what_it_means_to_ollama(
    name: str, given: Any, meant: float | None
) -> None:
    assert getattr(read_options({name: given}).sampling, name) == meant


@pytest.mark.parametrize("given", [-1, -2, 0, None])
def test_num_predict_without_a_limit(given: int | None) -> None:
    assert read_options({"num_predict": given}).max_tokens is None


def test_stop_strings_are_bounded() -> None:
    assert len(read_options({"stop": ["x"] * 64}).stop) == 64
    with pytest.raises(InvalidRequest, match='option "stop" takes at most 64 strings'):
        read_options({"stop": ["x"] * 65})


def test_old_unknown_and_load_time_options_do_nothing() -> None:
    options = read_options(
        {
            "num_batch": 512.0,
            "num_gpu": -1,
            "use_mmap": True,
            "num_keep": 4,
            "typical_p": 1,
            "mirostat": "yes",
            "tfs_z": [],
            "Temperature": 3,
        }
    )
    assert options.sampling == Sampling()
