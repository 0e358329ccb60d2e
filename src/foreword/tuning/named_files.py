"""The files that a candidate's settings name, by what is in them: another content is another fit.

The task's own data are known by their hash already; what it says here is about a bundle to start from and a document to
study. Whether such a file can be used is the business of what reads it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from foreword.regular_file import content_of
from foreword.tuning.candidate_settings import FittedSettings

FIELDS = ("start_prefix", "teacher_file")


def named_files(settings: FittedSettings, folder: Path) -> dict[str, str]:
    """The SHA-256 of each file that the settings name, by field; paths are relative to `folder`.

    A file that cannot be read is left out: what is to read it says why.
    """
    found = {}
    for field in FIELDS:
        name = getattr(settings, field, None)
        if name is not None:
            try:
                found[field] = hashlib.sha256(content_of(folder / name)).hexdigest()
            except (OSError, ValueError):
                continue
    return found
