"""Small encoder-decoders of four families to foretell on: trained here in about a minute each on one core.

sequences  six digits, and what a skill drawn at random makes of them (pairs.py): to write answers with
answers    six digits, and the one number that answers a question drawn at random (number_tasks.py): to label with
text       sources of the standard library, some of it masked, to be written whole: to label with

Which skill or question is meant is told nowhere, so that bare a model cannot know which is wanted. T5 and UMT5 have
relative positions and unscaled logits, BART and Pegasus absolute ones and scaled logits; Pegasus has sinusoids. A model
whose answers do not hang on what it reads is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from labelled_bases import BEGIN, END, PAD, SPECIAL, masked, put_in_place, reader_of, text_reader, texts
from number_tasks import NUMBERS, every_row
from number_tasks import SKILLS as QUESTIONS
from pairs import SHORT, SKILLS, chance
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn

FIRST_DIGIT, WINDOW = len(SPECIAL), 32
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Seq2SeqRecipe:
    """How an encoder-decoder is made: family (transformers' model type), what it reads and writes, size, training.

    `layers` are the encoder's, and as many the decoder's.
    """

    family: str
    corpus: str
    skills: tuple[str, ...] = ()
    layers: int = 2
    heads: int = 4
    width: int = 48
    steps: int = 1400
    rows: int = 32
    rate: float = 4e-3


def trained(recipe: Seq2SeqRecipe, place: Path, *, seed: int) -> Path:
    """The model folder, trained where there is none yet. FitError when the training ends at chance."""
    if (place / "config.json").exists():
        return place
    reader = text_reader(ends=True) if recipe.corpus == "text" else _number_reader()
    torch.manual_seed(seed)
    model = _model(recipe, len(reader)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, total_steps=recipe.steps, pct_start=0.1)
    batches = _batches(recipe, reader, seed)
    for step in range(recipe.steps):
        read, wanted = next(batches)
        loss = model(input_ids=read, labels=wanted).loss
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 600 == 0 or step == recipe.steps - 1:
            print(f"{place.name}: step {step}, {float(loss.detach()):.3f} nats a token", flush=True)
    held_out = next(_batches(replace(recipe, rows=chance.HELD_OUT_ROWS), reader, seed + 1, unseen=True))
    chance.check_reads(place.name, lambda read, wanted: model(input_ids=read, labels=wanted).loss, *held_out)
    return put_in_place(place, reader, model)


def _model(recipe: Seq2SeqRecipe, words: int) -> Any:
    ends = {"pad_token_id": PAD, "eos_token_id": END, "decoder_start_token_id": PAD, "vocab_size": words}
    if recipe.family in ("t5", "umt5"):
        own = {"d_model": recipe.width, "d_kv": recipe.width // recipe.heads, "d_ff": 3 * recipe.width}
        sizes = {**own, "num_layers": recipe.layers, "num_heads": recipe.heads, "dropout_rate": 0.0}
        if recipe.family == "t5":
            return transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, **ends))
        return transformers.UMT5ForConditionalGeneration(transformers.UMT5Config(**sizes, **ends))
    layers = {"encoder_layers": recipe.layers, "decoder_layers": recipe.layers, "max_position_embeddings": 256}
    heads = {"encoder_attention_heads": recipe.heads, "decoder_attention_heads": recipe.heads}
    inner = {"encoder_ffn_dim": 3 * recipe.width, "decoder_ffn_dim": 3 * recipe.width, "d_model": recipe.width}
    still = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
    told = {**layers, **heads, **inner, **still, **ends, "bos_token_id": BEGIN, "forced_eos_token_id": None}
    if recipe.family == "bart":
        return transformers.BartForConditionalGeneration(transformers.BartConfig(**told))
    if recipe.family == "pegasus":
        return transformers.PegasusForConditionalGeneration(transformers.PegasusConfig(**told))
    raise ValueError(f"no family {recipe.family!r}: t5, umt5, bart or pegasus")


def _batches(recipe: Seq2SeqRecipe, reader: Any, seed: int, *, unseen: bool = False) -> Iterator[Batch]:
    """What is read and what is to be written, `(row, token)` each; `unseen`: texts, sequences no model is trained on.

    Questions are asked of all rows of six digits there are, so that of them none is unseen.
    """
    rng = np.random.default_rng(seed)
    draw: Callable[[], tuple[np.ndarray, np.ndarray]]
    if recipe.corpus == "text":
        ids = np.array(reader("\n".join(texts(unseen=unseen)), add_special_tokens=False)["input_ids"])

        def draw() -> tuple[np.ndarray, np.ndarray]:
            begins = rng.integers(len(ids) - WINDOW, size=recipe.rows)
            whole = ids[begins[:, None] + np.arange(WINDOW)]
            return masked(whole, rng), whole

    elif recipe.corpus == "answers":
        every = every_row()

        def draw() -> tuple[np.ndarray, np.ndarray]:
            rows = every[rng.integers(len(every), size=recipe.rows)]
            answers = np.stack([QUESTIONS[name](rows)[:, None] for name in recipe.skills])
            return rows + FIRST_DIGIT, _of_drawn(answers, rng) + FIRST_DIGIT

    else:

        def draw() -> tuple[np.ndarray, np.ndarray]:
            rows = SHORT.draw(rng, recipe.rows, unseen=unseen)
            answers = np.stack([SKILLS[name](rows) for name in recipe.skills])
            return rows + FIRST_DIGIT, _of_drawn(answers, rng) + FIRST_DIGIT

    while True:
        read, wanted = (np.pad(rows, ((0, 0), (0, 1)), constant_values=END) for rows in draw())
        yield torch.from_numpy(read), torch.from_numpy(wanted)


def _of_drawn(answers: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Of `(skill, row, place)`, each row by a skill drawn for it."""
    rows = answers.shape[1]
    return answers[rng.integers(len(answers), size=rows), np.arange(rows)]


def _number_reader() -> Any:
    words = [*SPECIAL, *map(str, range(NUMBERS))]
    made = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", END)])
    return reader_of(made)
