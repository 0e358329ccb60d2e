"""Foreword programs a frozen pretrained transformer with a prefix, and says how far it can be trusted.

The public names, loaded when they are first used: importing foreword imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from foreword.version import __version__

if TYPE_CHECKING:
    from foreword.assessment.evidence import Evidence, read_evidence
    from foreword.assessment.forgetting import forgetting_of
    from foreword.assessment.pilot import PilotResult, run_pilot
    from foreword.bundle import Bundle, load_bundle, save_bundle, sign_bundle
    from foreword.engine.attach import attached
    from foreword.engine.bake import bake
    from foreword.engine.host import Host
    from foreword.errors import ForewordError
    from foreword.prefix import LayerPrefix, Prefix
    from foreword.record import RunRecord
    from foreword.signing import PublicKey, SigningKey
    from foreword.trust import TrustPolicy
    from foreword.tuning.fit import fit
    from foreword.tuning.fit_result import Fit
    from foreword.tuning.foretelling import Foretelling, foretell
    from foreword.tuning.predictor import Answer, Predictor, predictor_from
    from foreword.tuning.task import Task

_WHERE = {
    "Answer": "foreword.tuning.predictor",
    "Bundle": "foreword.bundle",
    "Certificate": "foreword.certificate",
    "CompiledFunction": "foreword.compiler.compiled",
    "Cube": "foreword.compiler.domain",
    "Evidence": "foreword.assessment.evidence",
    "FiniteSet": "foreword.compiler.domain",
    "Fit": "foreword.tuning.fit_result",
    "Foretelling": "foreword.tuning.foretelling",
    "ForewordError": "foreword.errors",
    "Host": "foreword.engine.host",
    "LayerPrefix": "foreword.prefix",
    "LengthStudy": "foreword.compiler.lengths",
    "PilotResult": "foreword.assessment.pilot",
    "Predictor": "foreword.tuning.predictor",
    "Prefix": "foreword.prefix",
    "PublicKey": "foreword.signing",
    "RunRecord": "foreword.record",
    "SigningKey": "foreword.signing",
    "Sphere": "foreword.compiler.domain",
    "Target": "foreword.compiler.target",
    "Task": "foreword.tuning.task",
    "TrustPolicy": "foreword.trust",
    "attached": "foreword.engine.attach",
    "bake": "foreword.engine.bake",
    "compile_function": "foreword.compiler.pipeline",
    "fit": "foreword.tuning.fit",
    "foretell": "foreword.tuning.foretelling",
    "forgetting_of": "foreword.assessment.forgetting",
    "load_bundle": "foreword.bundle",
    "load_compiled": "foreword.compiler.compiled",
    "measure_lengths": "foreword.compiler.lengths",
    "plot_prefix_length": "foreword.compiler.length_picture",
    "predictor_from": "foreword.tuning.predictor",
    "prefix_length": "foreword.compiler.bounds",
    "read_evidence": "foreword.assessment.evidence",
    "read_samples": "foreword.compiler.samples",
    "run_pilot": "foreword.assessment.pilot",
    "save_bundle": "foreword.bundle",
    "sign_bundle": "foreword.bundle",
}

__all__ = [
    "Answer",
    "Bundle",
    "Certificate",
    "CompiledFunction",
    "Cube",
    "Evidence",
    "FiniteSet",
    "Fit",
    "Foretelling",
    "ForewordError",
    "Host",
    "LayerPrefix",
    "LengthStudy",
    "PilotResult",
    "Predictor",
    "Prefix",
    "PublicKey",
    "RunRecord",
    "SigningKey",
    "Sphere",
    "Target",
    "Task",
    "TrustPolicy",
    "__version__",
    "attached",
    "bake",
    "compile_function",
    "fit",
    "foretell",
    "forgetting_of",
    "load_bundle",
    "load_compiled",
    "measure_lengths",
    "plot_prefix_length",
    "predictor_from",
    "prefix_length",
    "read_evidence",
    "read_samples",
    "run_pilot",
    "save_bundle",
    "sign_bundle",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'foreword' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
