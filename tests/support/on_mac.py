"""A daemon that takes this machine for a Mac whose `caffeinate` is a program of the test's.

`python on_mac.py PROGRAM python -m mlxd serve ...`
"""

from __future__ import annotations

import sys
from functools import partial

from mlxd.cli import main
from mlxd.control.caffeinate import Caffeinate
from mlxd.daemon import composition

if __name__ == "__main__":
    program, _python, _m, _mlxd, *arguments = sys.argv[1:]
    part = partial(Caffeinate, program=program, platform="darwin", lingers=1.0)
    vars(composition)["Caffeinate"] = part
    sys.exit(main(arguments))
