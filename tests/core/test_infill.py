"""Which tokenizers know the marks of a gap."""

from __future__ import annotations

import json

import pytest

from mlxd.core.infill import FAMILIES, Marks, written_in


@pytest.mark.parametrize("marks", FAMILIES, ids=lambda marks: marks.before)
@pytest.mark.parametrize("ascii", [True, False])
def test_each_family_is_known_by_its_tokens_however_they_are_written(
    marks: Marks, ascii: bool
) -> None:
    tokens = [{"id": n, "content": name} for n, name in enumerate(marks.names)]
    assert written_in(json.dumps({"added_tokens": tokens}, ensure_ascii=ascii))
    assert not written_in(json.dumps({"added_tokens": tokens[:-1]}, ensure_ascii=ascii))


def test_a_template_that_speaks_of_marks_is_no_token() -> None:
    assert not written_in(
        json.dumps({"chat_template": "<|fim_prefix|><|fim_suffix|><|fim_middle|>"})
    )
