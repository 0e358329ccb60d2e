"""A small causal model that looks facts up in its context: trained here, in a few minutes, with nothing downloaded.

A document is a row of facts, each a key and its value; behind it come keys that are asked for, each with its value.
What a value is can only be known from the context, so the bare model can do no better than chance.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from foreword.engine.host import Host

KEYS, VALUES, FACTS = 16, 16, 8
HERE = Path(__file__).resolve().parent


def document(rng: random.Random) -> list[tuple[str, str]]:
    """FACTS keys, each with a value."""
    keys = rng.sample(range(KEYS), FACTS)
    return [(f"k{key}", f"v{rng.randrange(VALUES)}") for key in keys]


def told(facts: list[tuple[str, str]]) -> str:
    return " ".join(f"{key} {value}" for key, value in facts)


def tokenizer() -> PreTrainedTokenizerFast:
    pad, end = "<pad>", "</s>"
    words = [pad, end, *(f"k{key}" for key in range(KEYS)), *(f"v{value}" for value in range(VALUES))]
    made = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=pad))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token=pad, eos_token=end)


def trained(folder: Path, *, steps: int = 4000, seed: int = 0) -> Host:
    """The host; trained when `folder` has none yet."""
    if not (folder / "config.json").exists():
        reader = tokenizer()
        torch.manual_seed(seed)
        shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = LlamaConfig(vocab_size=len(reader), max_position_embeddings=128, tie_word_embeddings=True, **shape)
        model = LlamaForCausalLM(config)
        rng = random.Random(seed)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.05)
        for step in range(steps):
            rows = []
            for _ in range(32):
                facts = document(rng)
                rows.append(reader(told(facts) + " " + told(rng.sample(facts, FACTS)))["input_ids"])
            ids = torch.tensor(rows)
            logits = model(input_ids=ids[:, :-1]).logits
            asked = slice(2 * FACTS, None, 2)  # the values behind the document
            loss = nn.functional.cross_entropy(logits[:, asked].flatten(0, 1), ids[:, 1:][:, asked].flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if step % 200 == 0:
                print(f"step {step}: loss {loss.item():.3f}", flush=True)
            if loss.item() < 0.005:
                break
        model.save_pretrained(folder)
        reader.save_pretrained(folder)
    return Host.load(str(folder), device="cpu")


if __name__ == "__main__":
    trained(Path("runs/distillation/model"))
