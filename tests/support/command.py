"""A command of mlxd in this process: one of its own takes a third of a second to begin."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from subprocess import CompletedProcess
from unittest import mock

from mlxd.cli import main


def mlxd(*arguments: object, environment: Mapping[str, str] | None = None) -> CompletedProcess[str]:
    """Any but `serve`. `environment` stands for this process's, if it is given."""
    words = [str(argument) for argument in arguments]
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.dict(os.environ, environment or {}, clear=environment is not None),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            status = main(words)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 0
    return CompletedProcess(words, status, out.getvalue(), err.getvalue())
