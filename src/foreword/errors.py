"""Every exception that Foreword raises on purpose.

One tree, so that a caller can catch `ForewordError` and the command line can turn any of them into one clear
screen and exit code 2. Each carries what was expected, what was found and what to do; an error without a remedy
is a bug report, not a message.
"""

from __future__ import annotations


class ForewordError(Exception):
    """An expected failure, with its remedy.

    Parameters are sentences: `what` happened, what was `expected`, what was `found`, and the `fix` to try.

    >>> print(ForewordError("The row index is out of range.", expected="0 to 2", found="7", fix="Use rows=[0, 1, 2]."))
    The row index is out of range.
      expected: 0 to 2
      found:    7
      to do:    Use rows=[0, 1, 2].
    """

    def __init__(self, what: str, *, expected: str = "", found: str = "", fix: str = "") -> None:
        self.what, self.expected, self.found, self.fix = what, expected, found, fix
        lines = [what]
        lines += [f"  expected: {expected}"] if expected else []
        lines += [f"  found:    {found}"] if found else []
        lines += [f"  to do:    {fix}"] if fix else []
        super().__init__("\n".join(lines))


class TaskError(ForewordError):
    """The task file is missing, malformed, or asks for something that cannot be."""


class DataError(ForewordError):
    """The examples cannot be read, or are not enough for what the task asks."""


class HostError(ForewordError):
    """The base model cannot be found, loaded, or shown to carry a prefix."""


class PrefixError(ForewordError):
    """A prefix breaks an invariant, or does not fit the host that should carry it."""


class AttachError(ForewordError):
    """A prefix could not be attached; the host is as it was."""


class BundleError(ForewordError):
    """A bundle cannot be written, or what is on disk is not a whole and honest bundle."""


class BaseMismatchError(BundleError):
    """The bundle was made for another base model than the one that is loaded."""


class UntrustedBundleError(BundleError):
    """The bundle is whole, but not signed by whom the trust policy asks for, or signed with a revoked key."""


class SigningError(ForewordError):
    """A key or a trust policy cannot be read or written, or the library that signs is not installed."""


class FitError(ForewordError):
    """A candidate could not be fitted: diverged, does not fit the model, or resumes with other settings."""


class RunFolderError(ForewordError):
    """The run folder cannot be written, is in use by another run, or holds another pilot's work."""


class CompileError(ForewordError):
    """A target, domain, tolerance or expression cannot be compiled as it stands."""


class CertificateError(ForewordError):
    """A certificate or a compiled file does not hold: changed, incomplete, or of another prefix."""


class PictureError(ForewordError):
    """A picture cannot be drawn of this, or not be written where it was wanted."""
