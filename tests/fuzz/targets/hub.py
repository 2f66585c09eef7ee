"""What a hub, or who stands in for it, says of a model."""

from __future__ import annotations

import json

import msgspec

from mlxd.hub import listing
from mlxd.hub.failure import PullFailure
from tests.fuzz.target import Target, flaw_in_words

_FILES = [
    {"rfilename": "config.json", "size": 5, "blobId": "0" * 40},
    {"rfilename": "model.safetensors", "lfs": {"sha256": "0" * 64, "size": 9}},
]


def hub() -> Target:
    """Its list of a model's files."""

    def run(case: bytes) -> None:
        try:
            info = listing._decoder.decode(case)
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            return  # said to be no hub
        files = [
            listing._remote(one)
            for one in info.siblings
            if listing._is_wanted(one.rfilename, listing._WANTED)
        ]
        listing._check_is_model("a/b", [file.name for file in files])
        for file in files:
            assert "/" not in file.name
            assert "\0" not in file.name
            assert file.name not in ("", ".", "..")
            assert not flaw_in_words(file.name, quotes=True)

    seeds = [json.dumps({"id": "a/b", "sha": "0" * 40, "siblings": _FILES}).encode()]
    return Target("hub", run, (PullFailure,), seeds, parse_errors_may_quote=True)
