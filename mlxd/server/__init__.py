"""HTTP: routes, status codes, streaming. The only room that knows aiohttp."""
