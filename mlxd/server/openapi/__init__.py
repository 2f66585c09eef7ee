"""The API described for programs: OpenAPI 3.1, of every route.

`python -m mlxd.server.openapi` writes it to docs/reference/openapi.json.
"""
