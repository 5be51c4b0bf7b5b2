"""The command ``bnfold``. It only talks: everything it does is in the modules it imports when needed."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import click

from bnfold import __version__
from bnfold.cli import bench, fold, recalibrate, show, stats
from bnfold.cli.show import fail
from bnfold.errors import BnfoldError
from bnfold.signals import orderly


class _Commands(click.Group):
    """A group whose default command is ``fold``: ``bnfold model.onnx`` is ``bnfold fold model.onnx``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h", "--version"):
            args = ["fold", *args]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # click itself would print a blank line first
            raise click.Abort from None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="bnfold")
def cli() -> None:
    """Fold every batch normalization of an ONNX model into the weights around it, exactly.

    `bnfold MODEL.onnx` folds, proves that the outputs are unchanged, and writes MODEL.folded.onnx;
    `bnfold fold --help` lists its options.

    Exit code 0: done. 1: a check failed. 2: bad usage or input.
    """


for command in (
    fold.fold,
    show.verify,
    bench.bench,
    stats.stats,
    stats.merge_stats,
    recalibrate.recalibrate,
    recalibrate.unfold,
    show.explain,
    show.rules,
):
    cli.add_command(command)


def main() -> None:
    """Run the command; every failure is one sentence on stderr and an exit code."""
    logging.getLogger("onnx_ir").setLevel(logging.CRITICAL)  # what it warns of is an error of ours
    try:
        with orderly():
            cli.main(standalone_mode=False)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _exit("interrupted; no file was left half-written.", 130)
    except click.exceptions.NoArgsIsHelpError:
        _exit("name a model, such as `bnfold model.onnx`; `bnfold --help` says more.", 2)
    except click.ClickException as error:
        _exit(error.format_message(), 2)
    except BnfoldError as error:
        _exit(str(error), error.exit_code)
    except OSError as error:
        if error.filename is not None:  # a defect: what has a name was opened by us
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python writes what is left when it ends
        _exit(f"cannot write ({error.strerror or error}); make room, or write elsewhere.", 2)


def _exit(message: str, code: int) -> None:
    fail(message)
    sys.exit(code)
