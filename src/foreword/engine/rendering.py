"""From texts to token ids: templates and chats around an input, cuts to what a model reads, padding, batches.

Rows are padded here, not by the tokenizer, so that calls leave no trace in it. What a model makes of the rows
`generation.py` knows; this module runs no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jinja2 import TemplateError
from torch import Tensor

from foreword.engine.host import Host
from foreword.errors import DataError, HostError

TokenIds = Sequence[int]

# A prompt must keep at least this many tokens of its input when it is cut to what the model reads.
SHORTEST_INPUT = 8


# No token of a real tokenizer stands for more characters than this: longer inputs are cut before they are tokenized.
LONGEST_TOKEN = 64


@dataclass(frozen=True)
class Template:
    """What stands before and after an input; kept in halves, so that braces in either are never mistaken for a field.

    With `chat` the whole is a user's message, shown in the tokenizer's chat template up to where the assistant's answer
    begins, behind a `system` text when there is one.

    >>> Template.parse("Text: {input}\\nLabel:")
    Template(before='Text: ', after='\\nLabel:', chat=False, system=None)
    """

    before: str
    after: str
    chat: bool = False
    system: str | None = None

    @classmethod
    def parse(cls, text: str, *, chat: bool = False, system: str | None = None) -> Template:
        """From text with `{input}` in it; without it, the input goes to the end."""
        before, _, after = text.partition("{input}")
        return cls(before, after, chat, system)


@dataclass(frozen=True)
class Rendered:
    """A prompt's token ids, and whether its input was cut to what the model reads."""

    ids: list[int]
    is_cut: bool


@dataclass(frozen=True)
class Rows:
    """Padded token ids and their mask, both `(row, token)`; mask 1 = a real token."""

    ids: Tensor
    mask: Tensor


def render(
    host: Host, template: Template, text: str, *, max_tokens: int | None = None, reserve: int = 0, special: bool = True
) -> list[int]:
    """The token ids of `rendered`."""
    return rendered(host, template, text, max_tokens=max_tokens, reserve=reserve, special=special).ids


def rendered(
    host: Host, template: Template, text: str, *, max_tokens: int | None = None, reserve: int = 0, special: bool = True
) -> Rendered:
    """Token ids of `text` between the two halves of `template`, and whether the text had to be cut.

    When that is longer than the model reads (less `reserve` tokens), or than `max_tokens`, the end of the *input* is
    cut, never the template around it. DataError when the template alone does not fit, or there is nothing to read.
    """
    limit = min(max_tokens or host.max_positions, host.max_positions - reserve)
    if limit < 1:
        raise DataError(
            "The answer leaves the prompt no room in what the model reads.",
            expected=f"fewer than {host.max_positions} tokens for the answer and a soft prompt",
            found=f"{reserve} tokens",
            fix="Let the answer have fewer tokens (max_tokens, shorter labels), or use a base model that reads more.",
        )
    kept = text[: limit * LONGEST_TOKEN]
    ids = prompt_tokens(host, template, kept, special=special)
    while len(ids) > limit:
        count = len(tokens(host, kept, special=False))
        keep = count - (len(ids) - limit)
        if keep < min(SHORTEST_INPUT, count):
            raise DataError(
                "The prompt does not fit into the model, even with its input cut short.",
                expected=f"at most {limit} tokens with at least {SHORTEST_INPUT} of the input",
                found=f"{len(ids)} tokens, {len(ids) - count} of them without the input",
                fix="Shorten the template or the demonstrations, raise max_input_tokens where it is set, or use a base "
                "model that reads more.",
            )
        kept = _cut(host, kept, keep)
        ids = prompt_tokens(host, template, kept, special=special)
    if not ids:
        raise DataError(
            "There is no token to read: the input is empty, and so is the template around it.",
            expected="at least one token",
            found=repr(text[:40]),
            fix="Leave empty inputs out, or put some text into the template.",
        )
    return Rendered(ids, is_cut=len(kept) < len(text))


def prompt_tokens(host: Host, template: Template, text: str, *, special: bool = True) -> list[int]:
    """Token ids of the whole prompt, uncut; a chat template writes its own beginning token."""
    whole = template.before + text + template.after
    if not template.chat:
        return tokens(host, whole, special=special)
    return tokens(host, chat_text(host, whole, template.system), special=False)


def chat_text(host: Host, text: str, system: str | None) -> str:
    """`text` as a user's message in the tokenizer's chat template, up to where the assistant's answer begins.

    HostError when the tokenizer has no chat template, or its template refuses the messages (some know no system text).
    """
    messages = [{"role": "user", "content": text}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return _shown(host, messages, answers=True)


def message_tokens(host: Host, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Token ids of whole messages in the tokenizer's chat template; HostError as for `chat_text`."""
    return tokens(host, _shown(host, messages, answers=False), special=False)


def _shown(host: Host, messages: Sequence[Mapping[str, str]], *, answers: bool) -> str:
    """The messages in the chat template; with `answers`, up to where the assistant's answer begins."""
    if not getattr(host.tokenizer, "chat_template", None):
        raise HostError(
            "This base model has no chat template.",
            expected="a tokenizer with a chat template, as instruction-tuned models have",
            found=f"{host.reference}, {host.family}",
            fix="Remove chat from [model], or name an instruction-tuned base model.",
        )
    try:
        shown = host.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=answers)
    except (TemplateError, TypeError, ValueError, LookupError) as error:
        raise HostError(
            "The base model's chat template refuses the messages.",
            expected=" and ".join(str(message.get("role")) for message in messages)[:200] + " messages",
            found=f"{type(error).__name__}: {error}"[:200],
            fix="Leave system out of [model] if the template knows no system text, or remove chat.",
        ) from error
    return str(shown)


def tokens(host: Host, text: str, *, special: bool) -> list[int]:
    """Token ids of `text`, with the tokenizer's own beginning and end tokens when `special`.

    A causal model gets no end token: it continues the text. Its beginning token it needs (Llama, Gemma).
    """
    if host.tokenizer is None:
        raise HostError(
            "This host has no tokenizer, so it cannot read text.",
            expected="a tokenizer",
            found="None",
            fix="Host(model, tokenizer), or Host.load(reference).",
        )
    ids = list(host.tokenizer(text, add_special_tokens=special, truncation=False, verbose=False)["input_ids"])
    ends = special and host.role == "causal" and len(ids) > 1 and ids[-1] == host.tokenizer.eos_token_id
    return ids[:-1] if ends else ids


def targets(host: Host, text: str) -> list[int]:
    """Token ids of `text` as an encoder-decoder model's decoder writes it, with the tokenizer's own end token."""
    return list(host.tokenizer(text_target=text, truncation=False, verbose=False)["input_ids"])


def _cut(host: Host, text: str, count: int) -> str:
    """`text` up to the end of its token number `count`, always shorter than before."""
    if not getattr(host.tokenizer, "is_fast", False):  # tells no character offsets: cut in proportion
        return text[: min(len(text) * count // max(len(tokens(host, text, special=False)), 1), len(text) - 1)]
    found = host.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    end = found["offset_mapping"][max(count, 1) - 1][1]
    return text[: min(end, len(text) - 1)]


def padded(host: Host, rows: Sequence[TokenIds], *, left: bool = False) -> Rows:
    """Rows of token ids padded to one length, on the host's device; every row needs at least one token."""
    width = max(len(row) for row in rows)
    pad = getattr(host.tokenizer, "pad_token_id", None) or 0
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        where = slice(width - len(row), width) if left else slice(0, len(row))
        ids[index, where] = torch.tensor(list(row), dtype=torch.long)
        mask[index, where] = 1
    return Rows(ids.to(host.device), mask.to(host.device))
