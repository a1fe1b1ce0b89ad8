"""A zygote as on a kernel that has no Landlock: in place of `python -m dataflower.container.zygote`."""

from __future__ import annotations

import errno
import os

from dataflower.container import kernel, zygote


def _missing() -> int:
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


if __name__ == "__main__":
    kernel.landlock_version = _missing
    zygote.main()
