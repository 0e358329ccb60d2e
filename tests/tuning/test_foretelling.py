"""`fw.foretell`: what the probes measure, that they leave no trace, and that a verdict tells how often it is wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

import foreword as fw
from foreword.confidence import rate_interval
from foreword.engine.generation import completion_loss
from foreword.engine.host import Host
from foreword.errors import TaskError
from foreword.tuning import probes as probing
from foreword.tuning.foretelling import ADVICE, Calibration, ErrorRate, Score, judged
from foreword.tuning.gradient_shape import GradientShape, SiteGradient, gradient_shape
from foreword.tuning.probes import Probes

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "STEPS", 4)
    monkeypatch.setattr(probing, "LORA_STEPS", 4)
    monkeypatch.setattr(probing, "GRADIENTS", 3)


def loss_of(host: Host, rows: list[list[int]]) -> Callable[[int], Tensor]:
    return lambda index: completion_loss(host, [rows[index][:3]], [rows[index][3:]])


ROWS = [[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15], [16, 17, 18, 19, 20, 21]]


# The shape of a gradient


def test_examples_that_are_all_the_same_agree_wholly(shared_host: Callable[[str], Host]) -> None:
    found = gradient_shape(shared_host("gpt2"), loss_of(shared_host("gpt2"), [ROWS[0]] * 3), 3)
    assert [site.agreement for site in found.sites] == pytest.approx([1.0] * len(found.sites))
    assert len(found.sites) == len(shared_host("gpt2").sites)


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_one_bias_explains_no_more_than_one_per_example(shared_host: Callable[[str], Host], family: str) -> None:
    """Both are projections of the same gradients, the first onto a smaller space."""
    host = shared_host(family)
    if host.role == "causal":
        loss = loss_of(host, ROWS)
    else:

        def loss(index: int) -> Tensor:
            ids = torch.tensor([ROWS[index]])
            found: Tensor = host.backbone(input_ids=ids).last_hidden_state[0, 0].pow(3).sum()
            return found

    found = gradient_shape(host, loss, 3)
    for site in found.sites:
        assert 0 <= site.constant <= site.per_example * (1 + 1e-9) <= 1 + 1e-9
        assert -0.5 - 1e-9 <= site.agreement <= 1 + 1e-9  # three vectors' mean cosine is at least -1/2
    assert 0 <= found.mean("constant") <= 1


def test_the_first_order_gain_of_a_bias_is_the_mean_gradient(shared_host: Callable[[str], Host]) -> None:
    """The hooks see the gradient of what a site writes: moving it by h changes the loss by h times its sum."""
    host, step = shared_host("gpt2"), 1e-3
    site = host.sites[0].name
    direction = torch.randn(host.hidden_size, generator=torch.Generator().manual_seed(0))
    loss = loss_of(host, ROWS)

    def moved(by: float) -> float:
        def add(_: Any, __: Any, output: Any) -> Any:
            return (output[0] + by * direction, *output[1:])

        handle = host.backbone.get_submodule(site).register_forward_hook(add)
        try:
            with torch.no_grad():
                return float(loss(0).double())
        finally:
            handle.remove()

    from foreword.tuning.gradient_shape import _added

    with _added(host) as deltas:
        torch.autograd.backward(loss(0))
        gradient = deltas[site][0].grad
    assert gradient is not None
    expected = float(gradient[0].sum(dim=0) @ direction)
    # A central difference errs by O(step^2), and by float32's rounding of a loss near 6, 4e-7, over the step.
    assert (moved(step) - moved(-step)) / (2 * step) == pytest.approx(expected, abs=1e-3)


# The probes


@pytest.fixture
def task(write_task: Callable[..., Path], model_folder: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    def made(family: str = "gpt2", **options: Any) -> Path:
        return write_task(tmp_path / "task", model_folder(family), [], **options)

    return made


@pytest.mark.parametrize(
    ("family", "kind"), [("gpt2", "generate"), ("gpt2", "classify"), ("bert", "classify"), ("t5", "classify")]
)
def test_foretelling_leaves_the_model_as_it_was_and_says_what_it_saw(
    task: Callable[..., Path], load_host: Callable[[str], Host], family: str, kind: Literal["generate", "classify"]
) -> None:
    host = load_host(family)
    before, heard = host.fingerprint, list[str]()
    found = fw.foretell(host, task(family, kind=kind), watch=heard.append)
    assert host.measure_fingerprint() == before
    assert not any(parameter.requires_grad for parameter in host.model.parameters())
    probes = found.probes
    assert heard == ["bare model", "gradients", "demonstrations", "prefix", "lora_attention", "lora_mlp"]
    assert set(probes.seconds) == set(heard)
    # The best state of a short fit is kept, the start included: LoRA starts as the bare model.
    assert probes.lora is not None
    assert probes.lora <= probes.bare * (1 + 1e-4)
    assert (probes.demonstrations is None) == (family != "gpt2")
    # A metric comes with a short fit where labels are asked for, and is a share; written answers would take generating.
    for metric in (probes.prefix_metric, probes.lora_metric):
        assert (metric is None) == (kind == "generate")
        assert metric is None or 0 <= metric <= 1
    told = json.loads(json.dumps(found.as_dict()))
    assert told["advice"] == ADVICE[found.verdict]
    # By the rule of this kind of task, and with its rates: those of written answers are not those of labels.
    rule = Calibration.load(kind, host.role)
    assert (found.works, found.prefix) == (rule.works.of(probes.features), rule.prefix.of(probes.features))
    if host.role in rule.roles:
        assert found.error_rate == ErrorRate.of(rule.prefix_right, rule.pairs)
        assert found.verdict_error_rate == ErrorRate.of(rule.right, rule.pairs)
    else:
        assert (found.error_rate, found.verdict_error_rate) == (None, None)
    assert fw.foretell(host, task(family, kind=kind)).probes.features == probes.features


def test_of_a_fit_by_another_objective_than_the_probes_no_error_rate_is_told(
    write_task: Callable[..., Path],
    model_folder: Callable[[str], Path],
    load_host: Callable[[str], Host],
    tmp_path: Path,
) -> None:
    """The probes are fitted to targets, which a teacher need not answer with."""
    candidates = [{"kind": "zero-shot"}, {"kind": "prefix", "objective": "distillation", "teacher_text": "a cat"}]
    path = write_task(tmp_path / "task", model_folder("gpt2"), candidates, kind="generate")
    found = fw.foretell(load_host("gpt2"), path)
    assert (found.error_rate, found.verdict_error_rate, found.objectives) == (None, None, ("distillation",))
    assert "fitted by distillation, and the probes to the examples' targets" in found.reliability
    assert found.as_dict()["objectives"] == ["distillation"]


@pytest.mark.parametrize("kind", ["classify", "generate"])
def test_a_teacher_is_judged_as_the_model_with_its_text_in_the_prompt(
    write_task: Callable[..., Path],
    model_folder: Callable[[str], Path],
    load_host: Callable[[str], Host],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    for name in ("STEPS", "LORA_STEPS"):
        monkeypatch.setattr(f"foreword.tuning.probes.{name}", 2)
    told = [{"kind": "prefix", "objective": "distillation", "teacher_text": "a cat"}]
    host = load_host("gpt2")
    found = fw.foretell(host, write_task(tmp_path / "told", model_folder("gpt2"), told, kind=kind)).probes
    template = "a cat\n\n" + ("{input}\nLabel:" if kind == "classify" else "{input}\n")
    prompted = write_task(tmp_path / "one", model_folder("gpt2"), [], kind=kind, model={"template": template})
    plain = fw.foretell(host, prompted).probes
    assert found.teacher == pytest.approx(plain.bare, abs=1e-5)
    assert found.teacher_metric == (plain.metric if kind == "classify" else None)
    assert (plain.teacher, plain.teacher_metric) == (None, None)


def test_a_teacher_behind_the_short_fit_to_the_targets_is_told() -> None:
    """By the metric where there is one: the losses would say the opposite. In nats, 1.0 is the short fit's loss."""
    labels = {"prefix_metric": 0.5, "teacher": 0.1}
    assert "(metric 0.400 and 0.500)" in verdict(probes_with(**labels, teacher_metric=0.4)).advice
    assert "(loss of the targets 1.100 and 1.000)" in verdict(probes_with(prefix=1.0, teacher=1.1)).advice
    ahead = [probes_with(**labels, teacher_metric=0.5), probes_with(prefix=1.0, teacher=0.9), probes_with()]
    assert not any("teacher" in verdict(found).advice for found in ahead)


def test_the_constant_answer_s_loss_is_that_of_the_labels_shares(task: Callable[..., Path]) -> None:
    """Three labels, equally often: log(3), up to the smoothing of 18 examples by one each and one unknown."""
    found = fw.foretell(None, task("bert", kind="classify"))
    assert found.probes.constant == pytest.approx(-torch.log(torch.tensor(7 / 22)).item(), abs=1e-6)


# The verdict


def probes_with(**changed: Any) -> Probes:
    shape = GradientShape((SiteGradient("a", 0.1, 0.2, 0.3, 1.0),))
    return replace(Probes(2.0, 1.5, None, 1.0, 1.2, 0.8, 0.1, 32, shape), **changed)


def test_what_is_gone_of_the_errors_is_told_by_share_and_not_where_no_metric_was_taken() -> None:
    told = probes_with(metric=0.6, prefix_metric=0.9, lora_metric=0.5).features
    assert told["prefix_errors_gone"] == pytest.approx(0.75)  # errors of 0.4 went down to 0.1
    assert told["lora_errors_gone"] == pytest.approx(-0.25)
    assert probes_with().features["prefix_errors_gone"] == 0
    assert probes_with(metric=1.0, prefix_metric=0.5).features["prefix_errors_gone"] == 0  # no errors, none gone


def rule(
    works: float = 9.0, prefix: float = 9.0, pairs: int = 20, right: int = 18, *, is_conditional: bool = True
) -> Calibration:
    """Scores that depend on one feature each, so that a verdict can be chosen."""
    scores = (
        Score(("lora_gain",), (0.3,), (0.1,), (works,), 0.0),
        Score(("prefix_gain",), (0.3,), (0.1,), (prefix,), 0.0),
    )
    return Calibration(*scores, is_conditional, pairs, right, right + 1, ("causal",), ("generate",))


def verdict(probes: Probes, **told: Any) -> fw.Foretelling:
    options: dict[str, Any] = {"role": "causal", "kind": "generate", "required": 0.7} | told
    return judged(probes, rule(), **options)


def test_each_verdict_follows_from_its_probes() -> None:
    assert verdict(probes_with()).verdict == "prefix"
    assert verdict(probes_with(prefix=1.9)).verdict == "lora"
    assert verdict(probes_with(lora_attention=2.0, lora_mlp=None)).verdict == "other base"
    assert verdict(probes_with(metric=0.7)).verdict == "nothing needed"
    for found in (verdict(probes_with()), verdict(probes_with(prefix=1.9))):
        assert found.probability > 0.5


def test_a_verdict_against_a_prefix_says_so_where_the_short_prefix_fit_did_what_is_required() -> None:
    unlike = probes_with(prefix=1.9, prefix_metric=0.7)
    assert verdict(unlike).verdict == "lora"
    assert "reached 0.700" in verdict(unlike).advice
    assert "0.7 is required: let `foreword pilot` judge a prefix" in verdict(unlike).advice
    for other in (probes_with(prefix=1.9), probes_with(prefix=1.9, prefix_metric=0.69), probes_with(prefix_metric=0.7)):
        assert "reached" not in verdict(other).advice


@pytest.mark.parametrize("is_conditional", [True, False])
def test_chances_of_the_three_verdicts_sum_to_one_whatever_the_second_score_is_of(is_conditional: bool) -> None:
    made = rule(is_conditional=is_conditional)
    found = judged(probes_with(), made, role="causal", kind="generate", required=0.7)
    can = found.works * found.prefix if is_conditional else min(found.works, found.prefix)
    assert found.probability == can  # of the verdict "prefix"
    unlike = judged(probes_with(prefix=1.9), made, role="causal", kind="generate", required=0.7)
    assert (unlike.verdict, unlike.probability) == (
        "lora",
        unlike.works - (unlike.works * unlike.prefix if is_conditional else min(unlike.works, unlike.prefix)),
    )


def test_the_error_rate_is_stated_with_its_exact_interval_and_only_where_it_was_measured() -> None:
    told = verdict(probes_with())
    for rate, wrong in ((told.error_rate, 1), (told.verdict_error_rate, 2)):
        assert rate is not None
        interval = rate_interval(wrong, 20)
        assert (rate.wrong, rate.pairs, rate.low, rate.high) == (wrong, 20, interval.low, interval.high)
        assert rate.text in told.reliability
    for other in ({"role": "encoder"}, {"kind": "classify"}):
        found = verdict(probes_with(), **other)
        assert found.error_rate is None
        assert "not measured" in found.reliability


@pytest.mark.parametrize(
    ("kind", "role", "bases", "least"),
    [
        ("generate", "causal", "y", 20),
        ("classify", "causal", "b", 10),
        ("classify", "encoder", "dgm", 20),
        ("generate", "encoder-decoder", "e", 15),
        ("classify", "encoder-decoder", "h", 15),
    ],
)
def test_the_shipped_calibration_was_judged_on_pairs_that_it_was_not_made_from(
    kind: Literal["generate", "classify"], role: str, bases: str, least: int
) -> None:
    place = Path(fw.__file__).parent / "tuning" / "calibration" / f"foretelling-{kind}-{role}.json"
    told = json.loads(place.read_text())
    cases = told["record"]["settings"]["cases"]
    assert {case["pair"][0] for case in cases} == set(bases)  # the names of the validation part's bases
    assert told["validation"]["pairs"] == len(cases) >= least
    assert told["validation"]["right"] == sum(case["said"] == case["truth"] for case in cases)
    rule = Calibration.load(kind, role)
    assert rule.roles == (role,)
    assert (rule.pairs, rule.right) == (len(cases), told["validation"]["right"])
    prefix_right = sum((case["said"] == "prefix") == (case["truth"] == "prefix") for case in cases)
    assert rule.prefix_right == told["validation"]["prefix_right"] == prefix_right


def test_what_encoder_decoders_write_is_told_by_the_rule_of_causal_models_with_rates_of_its_own() -> None:
    own, causal = Calibration.load("generate", "encoder-decoder"), Calibration.load("generate", "causal")
    assert (own.works, own.prefix, own.is_conditional) == (causal.works, causal.prefix, causal.is_conditional)
    assert (own.roles, own.kinds) == (("encoder-decoder",), ("generate",))
    assert own.pairs != causal.pairs


def test_learning_how_often_labels_occur_is_no_gain_where_an_encoder_decoder_labels() -> None:
    """A bare model gives five labels a hundredth of what is likely; a fit that learns their shares halves its loss."""
    rule = Calibration.load("classify", "encoder-decoder")
    constant = math.log(5)
    shares = probes_with(
        bare=8.0, constant=constant, prefix=constant, lora_attention=constant, lora_mlp=constant, metric=0.1
    )
    assert shares.features["prefix_gain"] > 0.7
    chance = replace(shares, prefix_metric=0.2, lora_metric=0.2)
    told = {"role": "encoder-decoder", "kind": "classify", "required": 0.9}
    assert judged(chance, rule, **told).verdict == "other base"
    assert judged(replace(shares, prefix=0.3, prefix_metric=0.9, lora_metric=0.9), rule, **told).verdict == "prefix"


def test_no_error_rate_is_stated_for_models_that_none_was_measured_on() -> None:
    measured = {
        *((kind, role) for kind in ("generate", "classify") for role in ("causal", "encoder-decoder")),
        ("classify", "encoder"),
    }
    kinds: tuple[Literal["generate", "classify"], ...] = ("generate", "classify")
    for kind in kinds:
        for role in ("causal", "encoder", "encoder-decoder"):
            found = judged(probes_with(), Calibration.load(kind, role), role=role, kind=kind, required=0.7)
            assert (found.error_rate is not None) == ((kind, role) in measured)
            assert ("not measured" in found.reliability) == (found.error_rate is None)


def test_a_wrong_task_file_is_refused_with_all_its_problems(tmp_path: Path) -> None:
    path = tmp_path / "task.toml"
    path.write_text("[task]\nname = 3\n")
    with pytest.raises(TaskError, match="problems"):
        fw.foretell(None, path)
