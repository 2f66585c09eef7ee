"""Panics of the engine's parts in Rust, tokenizers above all. Python gets them as no Exception."""

from __future__ import annotations


def is_panic(error: BaseException) -> bool:
    """Whether what is broken is no more than the call that raised it. The class has no home that
    it could be imported from.
    """
    return type(error).__name__ == "PanicException"
