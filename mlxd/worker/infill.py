"""One model's way to fill a gap, as its tokenizer tells."""

from __future__ import annotations

from functools import cached_property

from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlxd.core.infill import ENDS, FAMILIES, Marks


class Infill:
    """Looked up with the first request that has a gap."""

    def __init__(self, tokenizer: TokenizerWrapper) -> None:
        self._tokenizer = tokenizer

    @cached_property
    def marks(self) -> Marks | None:
        """None for a model that fills none."""
        known = (m for m in FAMILIES if all(self._id(name) is not None for name in m.names))
        return next(known, None)

    @cached_property
    def ends(self) -> tuple[str, ...]:
        """What of an answer's text says that the gap is full."""
        names = [*ENDS, *(self.marks.names if self.marks is not None else ())]
        found = [name for name in names if self._id(name) is not None]
        texts: list[str] = []
        for name in found:
            read = name.replace("▁", " ")
            texts += (name, read, read.strip())
        return tuple(dict.fromkeys(texts))

    def around(self, marks: Marks, before: list[int], behind: list[int]) -> list[int]:
        """The prompt for the tokens before and behind a gap."""
        first = [*self._ids(marks.before), *before]
        second = [*self._ids(marks.behind), *behind]
        parts = (second, first) if marks.behind_first else (first, second)
        return [*self._opening(), *parts[0], *parts[1], *self._ids(marks.gap)]

    def _opening(self) -> list[int]:
        """The token that every text of this model begins with, if there is one."""
        opening: list[int] = self._tokenizer.encode("", add_special_tokens=True)
        bos = self._tokenizer.bos_token_id
        return [bos] if bos is not None and opening[:1] == [bos] else []

    def _ids(self, name: str) -> list[int]:
        found = self._id(name) if name else None
        return [] if found is None else [found]

    def _id(self, name: str) -> int | None:
        found: int | None = self._tokenizer.convert_tokens_to_ids(name)
        if found is None or found == self._tokenizer.unk_token_id:
            return None
        return found
