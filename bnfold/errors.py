"""What bnfold raises: every failure is a type, and its text is one sentence that says what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bnfold.verification import Verdict


class BnfoldError(Exception):
    """Base of everything bnfold raises on purpose.

    ``exit_code`` is what the command returns for it: 2 for bad usage or input, 1 for a check that failed.
    """

    exit_code = 2


class UnreadableModelError(BnfoldError):
    """The file is missing, empty, truncated, or no ONNX model."""


class InvalidModelError(BnfoldError):
    """The model was read but breaks the ONNX specification, so that no result could be trusted."""


class UnsupportedModelError(BnfoldError):
    """The model holds something that would be lost by reading and writing it."""


class InputsError(BnfoldError):
    """The given input data do not fit the model."""


class SelectionError(BnfoldError):
    """A name pattern matches nothing in the model."""


class OutputError(BnfoldError):
    """The result could not be written where it should go."""


class MissingDependencyError(BnfoldError):
    """An optional package is needed; the text names the command that installs it."""


class UnexpectedError(BnfoldError):
    """The command met a defect of bnfold itself."""


class VerificationError(BnfoldError):
    """The folded model could not be shown to equal the original one.

    Attributes:
        verdict: the ``bnfold.Verdict`` that says what was compared and what differed.
    """

    exit_code = 1

    def __init__(self, message: str, verdict: Verdict | None = None) -> None:
        super().__init__(message)
        self.verdict = verdict
