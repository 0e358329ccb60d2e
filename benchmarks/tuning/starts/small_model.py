"""A small causal language model, trained here on the standard library's own text: the same on every run of one Python.

A Llama of 3 layers (rotary positions, two query heads to a key head), a byte-level BPE of 2,048 tokens; AdamW with a
cosine schedule on next-token prediction over the sources in Lib/. It knows Python's prose a little, and nothing of any
task here.

    .venv/bin/python benchmarks/tuning/starts/small_model.py --out runs/small-causal     # minutes on one core
"""

from __future__ import annotations

import argparse
import json
import math
import sysconfig
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY, WIDTH, LAYERS, LENGTH = 2048, 128, 3, 128
RATE = 2e-3
LARGEST = 6_000_000  # characters of training text


def corpus() -> list[str]:
    """Python files of the standard library, tests left out, in the order of their paths."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    skipped = {"test", "tests", "idlelib", "site-packages", "__pycache__", "encodings", "lib2to3"}
    found, size = [], 0
    for path in sorted(folder.rglob("*.py")):
        if skipped & set(path.relative_to(folder).parts):
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        found.append(text)
        size += len(text)
        if size > LARGEST:
            break
    return found


def tokenizer_of(texts: list[str]) -> PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def model_of(size: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size,
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=3 * WIDTH,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    )


def train(model: LlamaForCausalLM, tokens: torch.Tensor, *, steps: int, batch: int) -> list[float]:
    """Next-token prediction on pieces of LENGTH tokens behind a beginning token; the loss of every 50 steps."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.01)
    curve, recent = [], []
    for step in range(steps):
        warm = min(1.0, (step + 1) / 50)
        for group in optimizer.param_groups:
            group["lr"] = RATE * warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        starts = torch.randint(len(tokens) - LENGTH, (batch,), generator=generator)
        ids = torch.stack([tokens[start : start + LENGTH] for start in starts.tolist()])
        ids = torch.cat([torch.ones(batch, 1, dtype=torch.long), ids], dim=1)
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent.append(float(loss))
        if len(recent) == 50:
            curve.append(sum(recent) / 50)
            print(f"step {step + 1}: {curve[-1]:.3f} nats a token", flush=True)
            recent = []
    return curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/small-causal"))
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=16)
    arguments = parser.parse_args()
    texts = corpus()
    tokenizer = tokenizer_of(texts)
    tokens = torch.tensor([token for text in texts for token in tokenizer(text, add_special_tokens=False)["input_ids"]])
    model = model_of(len(tokenizer))
    curve = train(model, tokens, steps=arguments.steps, batch=arguments.batch)
    model.eval()
    arguments.out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    told = {"tokens": len(tokens), "steps": arguments.steps, "batch": arguments.batch, "loss": curve}
    (arguments.out / "training.json").write_text(json.dumps(told) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
