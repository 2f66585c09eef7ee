"""Secrets are compared by hmac.compare_digest alone, behind a look-up by hash: how long it takes
says nothing of them.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator

import pytest

from tests.support.sources import sources

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


def compared(nodes: Iterable[ast.AST], file: str) -> Iterator[str]:
    """Comparisons of what is called like a secret."""
    for node in nodes:
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
    assert {source.name for source in sources()} >= OF_KEYS
    found = {
        source.name: [
            *compared(source.nodes(ast.Compare), source.name),
            *compared(source.nodes(ast.Match), source.name),
        ]
        for source in sources()
        if source.name in OF_KEYS or SECRET.search(source.text)
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
    assert list(compared(ast.walk(ast.parse(written)), "policy/keyring.py"))
