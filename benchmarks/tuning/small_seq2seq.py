"""Small encoder-decoder models of the laboratory's skills: trained here, in a minute or two on one core.

T5's layers have relative positions and logits that are not scaled by the root of the width, BART's have learned
positions and scaled ones: what is measured on both does not hang on either. They sort up, sort down or add one, each as
likely, so that bare they cannot know which is wanted. One whose answers do not hang on what it reads is refused.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import torch
from starts.skill_tasks import DIGITS, LENGTH, SKILLS
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples" / "laboratory"))

from chance import HELD_OUT_ROWS, check_reads  # noqa: E402

MODELS = ROOT / "runs" / "small-seq2seq"
FAMILIES = ("t5", "bart")
WIDTH, LAYERS, HEADS, STEPS, ROWS, RATE = 64, 2, 4, 2500, 64, 3e-3
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")


def trained(family: str, folder: Path = MODELS, *, steps: int = STEPS, seed: int = 0) -> Path:
    """The model folder of a family; trained when there is none yet. FitError when the training ends at chance."""
    place = folder / family
    if (place / "config.json").exists():
        return place
    reader, rng = _tokenizer(), random.Random(seed)
    torch.manual_seed(seed)
    model = _model(family, len(reader)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.05)
    for step in range(steps):
        read, answers = _rows(rng, ROWS)
        loss = model(input_ids=read, labels=answers).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 500 == 0 or step == steps - 1:
            print(f"small {family}: step {step}, {float(loss.detach()):.3f} nats a token", flush=True)
    check_reads(
        place.name, lambda read, answers: model(input_ids=read, labels=answers).loss, *_rows(rng, HELD_OUT_ROWS)
    )
    reader.save_pretrained(place)
    model.save_pretrained(place)
    return place


def _model(family: str, words: int) -> Any:
    ends = {"pad_token_id": 0, "eos_token_id": SPECIAL.index("</s>"), "decoder_start_token_id": 0}
    if family == "t5":
        sizes = {"d_model": WIDTH, "d_kv": WIDTH // HEADS, "d_ff": 3 * WIDTH, "num_layers": LAYERS, "num_heads": HEADS}
        return T5ForConditionalGeneration(T5Config(vocab_size=words, dropout_rate=0.0, **sizes, **ends))
    layers = {"encoder_layers": LAYERS, "decoder_layers": LAYERS, "max_position_embeddings": 64}
    heads = {"encoder_attention_heads": HEADS, "decoder_attention_heads": HEADS}
    inner = {"encoder_ffn_dim": 3 * WIDTH, "decoder_ffn_dim": 3 * WIDTH, "d_model": WIDTH, "dropout": 0.0}
    none = {"bos_token_id": SPECIAL.index("<s>"), "forced_eos_token_id": None}
    return BartForConditionalGeneration(BartConfig(vocab_size=words, **layers, **heads, **inner, **ends, **none))


def _rows(rng: random.Random, count: int) -> tuple[Tensor, Tensor]:
    """Sequences and what a skill drawn for each makes of it, both with the end token, `(row, token)`."""
    read, answers = [], []
    for _ in range(count):
        row = [rng.randrange(DIGITS) for _ in range(LENGTH)]
        read.append(row)
        answers.append(rng.choice(list(SKILLS.values()))(row))
    end = torch.full((count, 1), SPECIAL.index("</s>"))
    whole = [torch.cat([torch.tensor(rows) + len(SPECIAL), end], dim=1) for rows in (read, answers)]
    return whole[0], whole[1]


def _tokenizer() -> PreTrainedTokenizerFast:
    words = [*SPECIAL, *map(str, range(DIGITS + 1))]
    made = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    named = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=made, **named)


if __name__ == "__main__":
    for family in FAMILIES:
        print(trained(family))
