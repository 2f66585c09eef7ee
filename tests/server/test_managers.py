"""`clients.manage_models: loopback` is this machine, whatever keys and proxies say."""

from unittest.mock import Mock

import pytest
from aiohttp import HttpVersion10, HttpVersion11, web
from aiohttp.test_utils import make_mocked_request

from mlxd.core.errors import Forbidden
from mlxd.policy.load import Override, load
from mlxd.server import edge
from mlxd.server.errors import in_ollama
from mlxd.server.managers import ForManagers


class Endpoint:
    render_error = staticmethod(in_ollama)

    async def __call__(self, request):
        return web.Response(text="done")


async def manages(peer, *overrides, version=HttpVersion11, **headers):
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    transport = Mock()
    transport.get_extra_info.side_effect = lambda name: (peer, 1) if name == "peername" else None
    request = make_mocked_request(
        "POST", "/api/pull", headers=names, version=version, transport=transport
    )
    request[edge.POLICIES] = load(
        None, [Override(key, text, "a test", yaml=True) for key, text in overrides]
    )
    try:
        await ForManagers(Endpoint())(request)
    except Forbidden:
        return False
    return True


PROXIES = ("clients.trusted_proxies", "[127.0.0.1]")
KEYS = ("clients.auth.required", "true")


@pytest.mark.parametrize("overrides", [(), (PROXIES,), (KEYS,), (PROXIES, KEYS)])
async def test_only_who_is_here_and_comes_through_nobody(overrides):
    assert await manages("127.0.0.1", *overrides)
    assert not await manages("10.0.0.1", *overrides)
    for told in ("203.0.113.5", "127.0.0.1", "127.0.0.1, 127.0.0.1"):
        assert not await manages("127.0.0.1", *overrides, X_Forwarded_For=told)


@pytest.mark.parametrize(
    "header",
    ["Forwarded", "Via", "X_Real_IP", "X_Client_IP", "X_Forwarded_Proto", "CF_Connecting_IP",
     "True_Client_IP"],
)  # fmt: skip
async def test_a_proxy_is_known_by_whatever_header_it_adds(header):
    assert not await manages("127.0.0.1", **{header: "127.0.0.1"})


async def test_a_proxy_that_adds_nothing_is_known_by_its_version():
    assert not await manages("127.0.0.1", version=HttpVersion10)


async def test_not_while_others_can_reach_it_though_a_key_let_them_in():
    wide = ("server.listen.host", "0.0.0.0")
    assert not await manages("127.0.0.1", wide, KEYS)
    assert await manages("10.0.0.1", wide, KEYS, ("clients.manage_models", "any"))


@pytest.mark.parametrize(
    ("peer", "here"),
    [("::1", True), ("::ffff:127.0.0.1", True), ("::ffff:10.0.0.1", False), ("::1%lo", True),
     ("fe80::1%eth0", False), ("", False)],
)  # fmt: skip
async def test_who_is_here_whatever_kind_of_socket_it_came_by(peer, here):
    assert await manages(peer) is here
