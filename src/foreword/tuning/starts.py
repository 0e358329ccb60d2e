"""The names of the starts, without torch: what a task file may say."""

from __future__ import annotations

from typing import Literal, get_args

Start = Literal["auto", "zero", "random", "text", "demonstrations", "vocabulary", "prefix", "closed-form"]
STARTS: tuple[str, ...] = get_args(Start)
