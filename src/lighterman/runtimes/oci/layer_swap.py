"""A checkpoint's files in place of a container's own, which are kept aside until it is sure that it goes on with those.

    upper.new   the checkpoint's, while they are copied
    upper.old   the container's own, from the exchange on until it is written down that the program goes on; there, they
                are the true ones
    upper.gone  what is being removed

Whoever dies in between, one of the calls below makes the layer one or the other. Blocking; they raise StoreError.
"""

from __future__ import annotations

import os

from lighterman.errors import StoreError
from lighterman.runtimes.oci.copying import remove

__all__ = ["clear", "fresh", "keep", "prepare", "put_in", "settle", "take_back"]


def fresh(upper: str) -> str:
    """Where the other files are put together."""
    return f"{upper}.new"


def _old(upper: str) -> str:
    return f"{upper}.old"


def _gone(upper: str) -> str:
    return f"{upper}.gone"


def prepare(upper: str) -> None:
    """Make room for them."""
    for path in (fresh(upper), _gone(upper)):
        remove(path)


def put_in(upper: str) -> None:
    """Exchange the files."""
    if os.path.lexists(_old(upper)):
        remove(upper)  # of an earlier exchange, from which nothing went on
    elif os.path.lexists(upper):
        _rename(upper, _old(upper))
    _rename(fresh(upper), upper)


def keep(upper: str) -> None:
    """The program goes on with the other files, and that is written down. What is to be removed is for `clear`."""
    if os.path.lexists(_old(upper)):
        remove(_gone(upper))
        _rename(_old(upper), _gone(upper))


def clear(upper: str) -> None:
    """Remove what `keep` has put away: maybe a huge tree."""
    remove(_gone(upper))


def take_back(upper: str) -> None:
    """It does not: the container's own files are its files again. Harmless where nothing was exchanged."""
    if os.path.lexists(_old(upper)):
        remove(upper)
        _rename(_old(upper), upper)


def settle(upper: str, *, goes_on: bool) -> None:
    """After a crash. Args: goes_on: whether the run that was begun with the other files is one of its runs."""
    prepare(upper)
    if goes_on:
        keep(upper)
        clear(upper)
    else:
        take_back(upper)


def _rename(source: str, target: str) -> None:
    try:
        os.rename(source, target)
    except OSError as failed:
        raise StoreError(f"{source} can't be moved to {target}: {failed.strerror}") from failed
