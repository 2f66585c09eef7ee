"""What is said in place of a medium that a model cannot read."""

from __future__ import annotations


def unread(kind: str) -> str:
    """Where a tool has given it: that stays in the conversation, and whoever refused it there would
    refuse every turn to come.
    """
    return f"[{kind}: this model reads text only]"
