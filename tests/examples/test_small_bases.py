"""The small models that benchmarks are run on: one that has learned nothing in training is refused and not saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from foreword.errors import FitError


@pytest.fixture
def scripts(import_scripts: Callable[..., dict[str, ModuleType]]) -> dict[str, ModuleType]:
    """The scripts that train them, by name."""
    names = ("small_causal", "small_seq2seq", "labelled_bases", "seq2seq_bases")
    return import_scripts(*names, folders=("foretelling",))


@pytest.mark.parametrize("script", ["labelled_bases", "seq2seq_bases"])
def test_a_base_of_foretelling_that_learned_nothing_is_not_saved(
    scripts: dict[str, ModuleType], script: str, tmp_path: Path, one_thread: None
) -> None:
    recipes = {
        "labelled_bases": lambda made: made.Recipe("gpt2", ("largest",), width=8, steps=2, rate=1e-9),
        "seq2seq_bases": lambda made: made.Seq2SeqRecipe("t5", "answers", ("largest",), width=8, steps=2, rate=1e-9),
    }
    made = scripts[script]
    with pytest.raises(FitError, match="idle has learned nothing"):
        made.trained(recipes[script](made), tmp_path / "idle", seed=0)
    assert not list(tmp_path.iterdir())


def test_a_small_encoder_decoder_that_learned_nothing_is_not_saved(
    scripts: dict[str, ModuleType], tmp_path: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scripts["small_seq2seq"], "RATE", 1e-9)
    with pytest.raises(FitError, match="t5 has learned nothing"):
        scripts["small_seq2seq"].trained("t5", tmp_path, steps=2)
    assert not list(tmp_path.iterdir())


def test_a_small_causal_model_that_learned_nothing_is_not_saved(
    scripts: dict[str, ModuleType], tmp_path: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = scripts["small_causal"]
    monkeypatch.setattr(made, "RATE", 1e-9)

    def texts(*, unseen: bool) -> list[str]:
        """One short text, so that making a tokenizer takes no time."""
        return [Path(__file__).read_text(encoding="utf-8")]

    monkeypatch.setattr(made, "texts", texts)
    with pytest.raises(FitError, match="learned nothing"):
        made.trained(tmp_path / "idle", steps=2)
    assert not list(tmp_path.iterdir())
