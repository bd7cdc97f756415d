"""How many threads small matrix products take.

threadpoolctl goes through the loaded libraries under a lock of the dynamic linker, and needs the interpreter for each of them. A thread
that imports a compiled module has the interpreter and waits for that lock: both then wait for ever. So the libraries are looked for once,
by `find_blas`, before a command starts a thread that imports anything.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache
from typing import Any


@cache
def find_blas() -> Any:
    """The BLAS libraries of this process, as threadpoolctl controls them. To be called first where no other thread imports."""
    # Only what is loaded can be found.
    import numpy  # noqa: F401
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def one_thread() -> AbstractContextManager[Any]:
    """Matrix products take one thread inside the ``with`` block."""
    limited: AbstractContextManager[Any] = find_blas().limit(limits=1, user_api="blas")
    return limited
