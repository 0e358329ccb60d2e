"""A task on a causal model, as PEFT's PrefixTuning and Cartridge read it: the token ids of its splits."""

from __future__ import annotations

from peft_writer import DOCUMENTED_HERE, GRID, LABEL_GRID, WriterSettings, Written, run_writer
from runs import WARM_UP, Bench, Fixed, Run
from torch import Tensor

from foreword.engine.host import Host
from foreword.tuning.candidates import Workbench
from foreword.tuning.examples import Example, Splits
from foreword.tuning.predictor import Predictor
from foreword.tuning.task import Task


class CausalBench(Bench):
    """Written answers, or labels by their likelihood; PEFT's settings are searched with the loss that ours has."""

    documented = DOCUMENTED_HERE

    def __init__(self, name: str, host: Host, task: Task, splits: Splits, fixed: Fixed) -> None:
        super().__init__(name, host, task, splits)
        self.fixed, self.grid = fixed, GRID if task.kind == "generate" else LABEL_GRID
        predictor = Predictor(host, Workbench(host, task, splits).manner())
        self.stop = predictor.manner.stop
        self.tokens = [self._tokens(predictor, part) for part in (splits.fit, splits.selection, splits.test)]

    def _tokens(self, predictor: Predictor, part: tuple[Example, ...]) -> Written:
        prompts = predictor.rows([example.input for example in part])
        texts = [example.target for example in part]
        if self.task.kind == "classify":
            choices = [predictor.completion(label) for label in predictor.manner.labels]
            return Written(prompts, [choices[predictor.manner.labels.index(text)] for text in texts], texts, choices)
        end = self.host.tokenizer.eos_token_id
        return Written(prompts, [[*predictor.completion(text), end] for text in texts], texts)

    def _read(self, written: Tensor) -> str:
        """What ours would compare: the text up to where an answer stops."""
        text = str(self.host.tokenizer.decode(written, skip_special_tokens=True)).strip()
        return text if self.stop is None else text.partition(self.stop)[0].strip()

    def peft(
        self,
        settings: WriterSettings,
        *,
        steps: int,
        seed: int,
        warm_up: float = WARM_UP,
        looks_at_unseen: bool = True,
    ) -> Run:
        return run_writer(
            self.task.reference,
            self.tokens,
            settings,
            self._read,
            fixed=self.fixed,
            steps=steps,
            seed=seed,
            warm_up=warm_up,
            looks_at_unseen=looks_at_unseen,
        )
