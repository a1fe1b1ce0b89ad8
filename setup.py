"""What pyproject.toml can't say: with DATAFLOWER_NATIVE=1 the modules on the way of a token are compiled, too.

Without it everything is plain Python, which needs no compiler: `pip install .` stays what it is.
"""

from __future__ import annotations

import os
import sys

from setuptools import setup

if os.environ.get("DATAFLOWER_NATIVE") != "1":
    setup()
elif set(sys.argv) & {"egg_info", "sdist", "dist_info"}:
    # A build of its own environment asks here what it needs beyond pyproject.toml: what the types come from.
    setup(setup_requires=["mypy>=1.15", "msgspec>=0.20"])
else:
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    from tools.native import extensions

    setup(ext_modules=extensions(os.environ.get("DATAFLOWER_NATIVE_BUILD", "build/native")))
