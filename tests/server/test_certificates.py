"""Whom the machine trusts is read when it is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

CERTIFICATE = Path(__file__).parent.parent / "data/certificates/localhost.pem"
"""Signed by itself; nobody has its key."""
TELLING = """
import json, sys
from mlxd.cli import listening, serve
from mlxd.policy.boot import boot
from mlxd.settings import Settings
from mlxd.server import certificates
early = "aiohttp" in sys.modules
with certificates.unread():
    import aiohttp
from aiohttp import connector
contexts = [
    connector._SSL_CONTEXT_VERIFIED, connector._SSL_CONTEXT_UNVERIFIED, certificates.read()
]
print(json.dumps([early, *(context.cert_store_stats()["x509_ca"] for context in contexts)]))
"""


def test_a_start_imports_aiohttp_without_them_and_they_are_there_afterwards() -> None:
    done = subprocess.run(
        [sys.executable, "-c", TELLING],
        env={"SSL_CERT_FILE": str(CERTIFICATE), "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert json.loads(done.stdout) == [False, 0, 0, 1]
