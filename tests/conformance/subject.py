"""One family's model with what every column needs of it: inputs, output, prefixes, and the tolerance of its depth."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from tests.conformance.families import CAUSAL, SEQUENCE, VOCABULARY, WINDOWED, built
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin

from foreword.engine.assignment import SiteTensors
from foreword.engine.host import Host
from foreword.engine.sites import probing_inputs
from foreword.prefix import Prefix

ROWS, TOKENS, DECODER_TOKENS = 3, 6, 5
START = 2
Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Subject:
    """A family's host with two prefixes of different lengths, as large as a real context's keys and values."""

    family: str
    host: Host
    prefix: Prefix
    other: Prefix

    @property
    def model(self) -> Any:
        return self.host.model

    def inputs(self, rows: int = ROWS) -> Inputs:
        """Random token ids, pixels or audio features of the shapes that the model reads."""
        generator = torch.Generator().manual_seed(3)
        given: Inputs = {}
        for name, probe in probing_inputs(self.host.backbone).items():
            if probe.is_floating_point():
                drawn = torch.randn(rows, *probe.shape[1:], generator=generator)
                given[name] = drawn.to(self.host.dtype)
            else:
                length = DECODER_TOKENS if name.startswith("decoder") else TOKENS
                given[name] = torch.randint(3, VOCABULARY - 3, (rows, length), generator=generator)
        return given

    def output(self, given: Inputs) -> Tensor:
        """The backbone's last hidden states; logits or embeddings where it has none."""
        return read(self.host.backbone(**given))

    def generate(self, given: Inputs, tokens: int = 6, **options: Any) -> Tensor:
        """Greedy continuation (or beams) of exactly `tokens` tokens; without the prompt."""
        begin = {"decoder_start_token_id": START} if self.family in SEQUENCE else {}
        config = GenerationConfig(
            max_new_tokens=tokens, do_sample=False, pad_token_id=0, eos_token_id=None, **begin, **options
        )
        prompt = 1 if self.family in SEQUENCE else given["input_ids"].shape[1]
        if "input_ids" in given and "attention_mask" not in given:
            given = {**given, "attention_mask": torch.ones_like(given["input_ids"])}
        with torch.no_grad():  # Whisper's own generate cuts audio into windows; the plain one is meant here
            found: Tensor = GenerationMixin.generate(self.model, **given, generation_config=config)
        return found[:, prompt:]

    def tolerance(self, largest: float, dtype: torch.dtype = torch.float32) -> float:
        """What rounding may add between two correct computations, to first order.

        In a row lie at most 8 products for each attention site with its feed-forward part, and 2 for embedding and
        head, each over at most 128 terms (the widest layer of these models): that times the unit roundoff, relative to
        the largest number (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.5). 1.4e-4 for two
        sites in float32. In bfloat16 sums are kept in float32 and each product rounds once: no factor for terms.
        """
        products = 8 * len(self.host.sites) + 2
        terms = 128 if dtype == torch.float32 else 1
        return products * terms * torch.finfo(dtype).eps / 2 * largest


def read(found: Any) -> Tensor:
    for name in ("last_hidden_state", "logits"):
        if getattr(found, name, None) is not None:
            return getattr(found, name)  # type: ignore[no-any-return]
    return torch.cat([found.text_embeds, found.image_embeds], dim=1)


@cache
def subject(family: str) -> Subject:
    """The family's one subject of a session: what acts on it takes itself back, or a later cell fails."""
    host = Host(built(family))
    config = getattr(host.model, "generation_config", None)
    if config is not None:  # BART would force its end token
        config.forced_eos_token_id = config.forced_bos_token_id = config.eos_token_id = None
    return Subject(family, host, a_prefix(host, 7, seed=1), a_prefix(host, 4, seed=2))


def a_prefix(host: Host, positions: int, *, seed: int) -> Prefix:
    return Prefix.random(host, positions=positions, seed=seed, scale=1.0)


def live(subject: Subject) -> dict[str, SiteTensors]:
    """The prefix as tensors that a fit would train."""
    return {
        site: SiteTensors(found.keys.clone().requires_grad_(), found.values.clone().requires_grad_())
        for site, found in subject.host.resident(subject.prefix).items()
    }


def parts(tensors: dict[str, SiteTensors]) -> list[Tensor]:
    return [part for found in tensors.values() for part in (found.keys, found.values)]


def assert_close(found: Tensor, wanted: Tensor, allowed: float) -> None:
    distance = float((found.double() - wanted.double()).abs().max())
    if not distance <= allowed:
        raise AssertionError(f"differs by {distance:.2e}, allowed {allowed:.2e}")


def assert_tokens(found: Tensor, wanted: Tensor) -> None:
    if found.tolist() != wanted.tolist():
        raise AssertionError(f"generated {found.tolist()}, expected {wanted.tolist()}")


def is_causal(subject: Subject) -> bool:
    return subject.family in CAUSAL


def is_windowed(subject: Subject) -> bool:
    return subject.family in WINDOWED
