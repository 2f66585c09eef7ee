"""Secrets are compared by hmac.compare_digest alone, behind a look-up by hash: how long it takes
says nothing of them.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "mlxd"
SECRET = re.compile(
    r"secret|passw|signature|credential|bearer|api_?key|authorization", re.IGNORECASE
)
HASHED = re.compile(r"sha256|digest", re.IGNORECASE)
OF_KEYS = {
    "policy/keyring.py", "policy/keys_file.py", "policy/keys_edit.py", "policy/credential.py",
    "control/keys.py", "server/identity.py", "server/guesses.py", "server/webhook.py",
}  # fmt: skip
"""Where a hash is that of a key."""
COMPARISONS = (ast.Eq, ast.NotEq, ast.In, ast.NotIn, ast.Lt, ast.LtE, ast.Gt, ast.GtE)


def compared(source: str, file: str) -> Iterator[str]:
    """Comparisons of what is called like a secret."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare) and any(isinstance(op, COMPARISONS) for op in node.ops):
            sides = [node.left, *node.comparators]
            if any(is_secret(side, file) for side in sides):
                yield ast.unparse(node)
        elif isinstance(node, ast.Match) and is_secret(node.subject, file):
            yield ast.unparse(node.subject)


def is_secret(node: ast.expr, file: str) -> bool:
    return any(
        SECRET.search(name) or (file in OF_KEYS and HASHED.search(name)) for name in names(node)
    )


def names(node: ast.expr) -> Iterator[str]:
    """By which a value is called; a bare None or a type is nobody's."""
    match node:
        case ast.Name(id):
            yield id
        case ast.Attribute(attr=attr):
            yield attr
        case ast.Subscript(value, ast.Constant(str(key))):
            yield from (*names(value), key)
        case ast.Subscript(value):
            yield from names(value)
        case ast.Call(ast.Attribute(value), arguments):
            yield from names(value)
            for argument in arguments:
                yield from names(argument)
        case ast.Call(ast.Name("len")):
            return
        case ast.Call(ast.Name(id), arguments):
            yield id
            for argument in arguments:
                yield from names(argument)
        case _:
            return


def test_no_secret_is_compared_otherwise() -> None:
    sources = {str(file.relative_to(PACKAGE)): file for file in PACKAGE.rglob("*.py")}
    assert set(sources) >= OF_KEYS
    found = {
        file: list(compared(source.read_text(encoding="utf-8"), file))
        for file, source in sources.items()
    }
    assert {file: one for file, one in found.items() if one} == {}


@pytest.mark.parametrize(
    "written",
    [
        "secret == given", "given != self._secret", "api_key in keys", "key.sha256 == digest",
        "headers['authorization'] == wanted", "secret[:4] == given", "secret.encode() == given",
        "digest_of(secret) == given",
    ],
)  # fmt: skip
def test_it_would_be_found(written: str) -> None:
    assert list(compared(written, "policy/keyring.py"))
