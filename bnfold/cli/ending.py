"""How a command ends early: told to stop, which is like Ctrl-C, or with one sentence."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import click

from bnfold.wording import printable

# What a user, a job scheduler and a closed terminal send.
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_HAS_MASK = hasattr(signal, "pthread_sigmask")


@contextmanager
def orderly() -> Iterator[None]:
    """Raise ``KeyboardInterrupt`` on any of the signals, for as long as the block lasts."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.getsignal(each) for each in _SIGNALS}
    try:
        for each, handler in before.items():
            if handler is not signal.SIG_IGN:  # nohup
                signal.signal(each, _interrupt)
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def deferred() -> Iterator[None]:
    """Let the signals wait until the block ends: what they raise within a fork, Python ignores."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS) if _HAS_MASK else set()
    try:
        yield
    finally:
        if _HAS_MASK:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def undeferred() -> None:
    """Let them come again, in a child that was forked while they waited."""
    if _HAS_MASK:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def fail(message: str) -> None:
    """Say what went wrong: one line on stderr, whatever a model's names hold."""
    click.echo("bnfold: " + printable(" ".join(message.split())), err=True)
