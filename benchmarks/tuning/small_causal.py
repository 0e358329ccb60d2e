"""A small causal model of English and Python text: trained here, in minutes on one core, with nothing downloaded.

Its text is what every Python has: the docstrings and sources of the standard library. One module in eight is kept out
of training, so that there is text of the same kind that it has not seen (`unseen`): a model that does not foretell its
tokens better than their frequencies do is refused.
"""

from __future__ import annotations

import hashlib
import random
import sys
import sysconfig
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from foreword.engine.host import Host

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples" / "laboratory"))

from chance import HELD_OUT_ROWS, check_predicts  # noqa: E402

MODEL = ROOT / "runs" / "small-causal"
LIBRARY = Path(sysconfig.get_path("stdlib"))
VOCABULARY, WIDTH, LAYERS, WINDOW = 1024, 96, 3, 64
STEPS, ROWS, RATE = 1500, 16, 3e-3


def texts(*, unseen: bool) -> list[str]:
    """The modules of the standard library's top folder, by name; those that training saw, or those that it did not."""
    found = []
    for path in sorted(LIBRARY.glob("*.py")):
        kept_out = hashlib.sha256(path.name.encode()).digest()[0] % 8 == 0
        if kept_out == unseen:
            found.append(path.read_text(encoding="utf-8", errors="replace"))
    return found


def trained(
    folder: Path = MODEL, *, steps: int = STEPS, width: int = WIDTH, layers: int = LAYERS, seed: int = 0
) -> Host:
    """The host; trained when `folder` has none yet. FitError when the training ends at chance."""
    if not (folder / "config.json").exists():
        reader = _tokenizer(texts(unseen=False))
        ids = torch.tensor(reader("\n".join(texts(unseen=False)))["input_ids"])
        torch.manual_seed(seed)
        shape = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "pad_token_id": 0, "bos_token_id": 1}
        room = {"max_position_embeddings": 512, "tie_word_embeddings": True, "eos_token_id": 2}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(reader), **shape, **heads, **room))
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.05)
        rng = random.Random(seed)
        for step in range(steps):
            loss = _loss(model, _windows(ids, ROWS, rng))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if step % 200 == 0 or step == steps - 1:
                print(f"small causal model: step {step}, {float(loss.detach()):.3f} nats a token", flush=True)
        held_out = torch.tensor(reader("\n".join(texts(unseen=True)))["input_ids"])
        rows = _windows(held_out, HELD_OUT_ROWS, rng)
        with torch.no_grad():
            check_predicts(folder.name, float(_loss(model, rows)), rows[:, 1:], ids)
        reader.save_pretrained(folder)
        model.save_pretrained(folder)
    return Host.load(str(folder), device="cpu")


def _windows(ids: Tensor, count: int, rng: random.Random) -> Tensor:
    """`(row, token)`: pieces of a text from places drawn at random, a token longer than the model's window."""
    starts = [rng.randrange(len(ids) - WINDOW - 1) for _ in range(count)]
    return torch.stack([ids[start : start + WINDOW + 1] for start in starts])


def _loss(model: nn.Module, rows: Tensor) -> Tensor:
    logits = model(input_ids=rows[:, :-1]).logits
    return nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


def _tokenizer(corpus: list[str]) -> PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(corpus, trainer)
    named = dict(zip(("pad_token", "bos_token", "eos_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=made, **named)


if __name__ == "__main__":
    print(trained())
