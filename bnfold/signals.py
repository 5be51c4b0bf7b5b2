"""Being told to stop: like Ctrl-C, in an orderly way, and not in the middle of what must stay whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType

Mask = Collection[int]

# What a user, a job scheduler and a closed terminal send.
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_HAS_MASK = hasattr(signal, "pthread_sigmask")

# That one came: what it raises within a finalizer, Python prints and ignores.
_TOLD = threading.Event()


@contextmanager
def orderly() -> Iterator[None]:
    """Raise ``KeyboardInterrupt`` on any of the signals, for as long as the block lasts."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.getsignal(each) for each in _SIGNALS}
    _TOLD.clear()
    try:
        for each, handler in before.items():
            if handler is not signal.SIG_IGN:  # nohup
                signal.signal(each, _interrupt)
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def heed() -> None:
    """Raise ``KeyboardInterrupt`` if a signal came, though what it raised was lost."""
    if _TOLD.is_set():
        raise KeyboardInterrupt


def deferred() -> AbstractContextManager[Mask]:
    """Let the signals of this thread wait until the block ends; gives the mask that ``under`` takes."""
    return _masked("SIG_BLOCK", _SIGNALS)


def under(mask: Mask) -> AbstractContextManager[Mask]:
    """Let them come while the block runs, as far as they came outside of ``deferred``."""
    return _masked("SIG_SETMASK", mask)


def undeferred() -> None:
    """Let them come again, in a child that was forked while they waited."""
    if _HAS_MASK:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


@contextmanager
def _masked(how: str, signals: Mask) -> Iterator[Mask]:
    before = signal.pthread_sigmask(getattr(signal, how), signals) if _HAS_MASK else set()
    try:
        yield before
    finally:
        if _HAS_MASK:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    _TOLD.set()
    raise KeyboardInterrupt
