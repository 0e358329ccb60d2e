"""The signatures in a bundle's file: written into its metadata beside the manifest, and checked when they are read.

What a signature covers `signing.py` knows; whether its key is trusted is for a policy to say (`trust.py`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from foreword.errors import BundleError, SigningError
from foreword.signing import Signature
from foreword.tensorfile import broken, parsed, with_text

SIGNATURES = "foreword.signatures"
SIGNATURE_LIMIT = 16


def with_signatures(path: Path, content: bytes, signatures: Sequence[Signature]) -> bytes:
    """The same file with these signatures in the place of those that it had."""
    told = [signature.described() for signature in signatures]
    return with_text(path, content, SIGNATURES, json.dumps(told, ensure_ascii=False))


def signatures_in(path: Path, text: str | None, digest: str) -> tuple[Signature, ...]:
    """The signatures in a file's metadata; BundleError when one of them is not over this digest."""
    if text is None:
        return ()
    try:
        told = parsed(text)
        if not isinstance(told, list) or not 1 <= len(told) <= SIGNATURE_LIMIT:
            raise ValueError(f"not a list of 1 to {SIGNATURE_LIMIT}")
        found = tuple(Signature.parse(entry) for entry in told)
        if len({signature.key for signature in found}) != len(found):
            raise ValueError("one key twice")
        invalid = [signature.key.id for signature in found if not signature.covers(digest)]
    except (ValueError, RecursionError) as error:
        raise broken(path, f"signatures that foreword does not write ({error})") from error
    except SigningError as error:
        raise BundleError(
            f"The signatures of {path} cannot be checked.", expected=error.expected, found=error.found, fix=error.fix
        ) from error
    if invalid:
        raise broken(path, f"a signature that is not over these contents (key {invalid[0]})")
    return found
