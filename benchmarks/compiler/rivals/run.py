"""How good is a compiled prefix beside networks, radial basis functions and polynomials of its size?

    .venv/bin/python benchmarks/compiler/rivals/run.py --quick     # two minutes: a few targets, short training
    .venv/bin/python benchmarks/compiler/rivals/run.py             # about half an hour
    .venv/bin/python benchmarks/compiler/rivals/run.py --parts smooth kinks --methods prefix --again
    .venv/bin/python benchmarks/compiler/rivals/run.py --report    # tables and picture of what is there

Each measurement is a line of JSON with the record of its run. Lines are collected in runs/ and copied to results/ at
the end, so that a changed file does not make later records' checkout dirty. What is there already, with the same
settings, is not measured again (unless `--again`): an interrupted run goes on where it stopped. For each target all
methods are run in turn on one thread, and their seconds are the processor's, since the machine may be shared.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy is loaded: one thread for everybody

import networks
import numpy as np
import torch
from interpolants import Result, polynomials, rbf_interpolation, rbf_least_squares
from report import report
from targets import CHOSEN, DOMAINS, JUDGED, Case, Points, drawn, kink_cases, smooth_cases

from foreword.certificate import Verdict
from foreword.compiler.checker import check
from foreword.compiler.nets import positions_for
from foreword.compiler.pipeline import CompiledFunction, compile_function
from foreword.compiler.proof import prove
from foreword.record import Stopwatch, command_line

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "rivals.jsonl"
WORKING = HERE.parents[2] / "runs" / "rivals.jsonl"
SECONDS = {"S1": 5, "S2": 12, "S3": 15, "square": 12, "cube": 15}  # of training for each smooth target, processor's
LONGER = 6  # times as much for one target of each domain: what more training would change
KINK_SECONDS, WAVE_SECONDS = 3, 10
WAVE_POSITIONS = {"S1": 96, "S2": 600, "square": 480}
ASKED = [  # (domain, positions, error) of smooth targets
    ("S1", 24, 1e-7), ("S2", 128, 1e-5), ("S2", 192, 1e-6), ("S2", 384, 2e-9), ("S3", 512, 3e-4),
    ("square", 144, 1e-6), ("cube", 1728, 2e-6),
]  # fmt: skip
CERTIFIED = [("S1", 1e-7, 1.0, 1.5), ("S2", 1e-5, 10.0, 1.5), ("S3", 4e-3, 30.0, 2.0)]  # tolerance, seconds, ratio
MOST_CHECKING = 120.0  # seconds of the clock for one independent check
NEAREST = [("S1", 0.01), ("S2", 0.05), ("S3", 0.2), ("square", 0.02)]


class Lines:
    """What was measured: one dictionary a line, keyed by what was asked."""

    def __init__(self, *, again: bool) -> None:
        WORKING.parent.mkdir(exist_ok=True)
        if not WORKING.exists() and RESULTS.exists():
            shutil.copy(RESULTS, WORKING)
        lines = WORKING.read_text(encoding="utf-8").splitlines() if WORKING.exists() else []
        self.found = {_key(line): line for line in map(json.loads, lines)}
        self.again, self.settings = again, {}

    def measure(self, asked: dict[str, Any], measurement: Callable[[], list[dict[str, Any]]]) -> None:
        """Measure unless it is there; each result (one may give several) becomes a line."""
        asked = {**asked, "settings": self.settings}
        if not self.again and _key(asked) in self.found:
            return
        watch = Stopwatch(command_line(), seeds=(0,))
        for number, result in enumerate(measurement()):
            line = {**asked, **result}
            key = _key(line) if number == 0 else f"{_key(asked)} {result['method']}"
            self.found[key] = {**line, "record": watch.record().as_dict()}
            shown = {k: v for k, v in line.items() if k not in ("settings", "choice", "part", "text")}
            print("  ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in shown.values()), flush=True)
        part = WORKING.with_suffix(".part")
        part.write_text("".join(json.dumps(line) + "\n" for line in self.found.values()), encoding="utf-8")
        part.replace(WORKING)


def _key(line: dict[str, Any]) -> str:
    names = ("part", "domain", "target", "method", "positions", "tolerance", "settings")
    return json.dumps([line.get(name) for name in names], sort_keys=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few targets, short training")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--methods", nargs="+", help="of the parts smooth, kinks and waves; all when left out")
    parser.add_argument("--domains", nargs="+", choices=list(DOMAINS), default=list(DOMAINS))
    parser.add_argument("--again", action="store_true", help="measure what is there already, too")
    parser.add_argument("--report", action="store_true", help="only write the tables and the picture")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = Lines(again=options.again)
    lines.settings = {"quick": options.quick}
    try:
        for part in [] if options.report else options.parts:
            print(f"--- {part}", flush=True)
            PARTS[part](lines, options)
    except KeyboardInterrupt:
        print("Stopped; the same command goes on from here.")
        return
    if not options.quick:
        RESULTS.parent.mkdir(exist_ok=True)
        shutil.copy(WORKING, RESULTS)
    kept = [line for line in lines.found.values() if line["settings"]["quick"] == options.quick]
    report(kept, None if options.quick else HERE / "results")


def compiled(case: Case, positions: int, judged: Points, **wishes: float) -> tuple[CompiledFunction, float, float]:
    """A prefix of that length without a proof, its largest error where it is judged, and its seconds."""
    started = time.process_time()
    made = compile_function(case.target, positions=positions, certify=False, **wishes)
    taken = time.process_time() - started
    return made, float(np.abs(made.evaluate(judged.points)[:, 0] - judged.values).max()), taken


def compared(lines: Lines, case: Case, options: argparse.Namespace, seconds: float, *, part: str) -> None:
    """All methods on one target, in turn."""
    selection, judged = drawn(case, CHOSEN, 3), drawn(case, JUDGED, 4)
    seconds = seconds / 10 if options.quick else seconds

    def prefix(value_limit: float = 10.0) -> list[Result]:
        made, error, taken = compiled(case, case.positions, judged, value_limit=value_limit)
        return [Result(error, taken, f"{made.method}, {made.positions} positions")]

    def network(shapes: networks.Shapes, share: float, *, told: bool = False) -> list[Result]:
        return networks.trained(case, selection, judged, seconds=share * seconds, shapes=shapes, told=told)

    methods: dict[str, Callable[[], list[Result]]] = {
        "prefix": prefix,
        "prefix, values up to 1e4": lambda: prefix(1e4),
        "RBF interpolation": lambda: [rbf_interpolation(case, selection, judged)],
        "RBF least squares": lambda: [rbf_least_squares(case, selection, judged)],
        "polynomials": lambda: [polynomials(case, selection, judged)],
    }
    if case.kinks:
        methods["ReLU network"] = lambda: network(networks.RELU, 1.0)
        methods["ReLU network told the kink"] = lambda: network(networks.RELU, 0.7, told=True)
    elif case.is_drawn:
        methods["network"] = lambda: network(networks.SMOOTH, 1.0)
        methods["sine network"] = lambda: network(networks.SINES, 0.5)
    for name, method in methods.items():
        if options.methods and name not in options.methods:
            continue
        asked = {"part": part, "domain": case.domain_name, "target": case.name, "kind": case.kind, "method": name}
        asked |= {"positions": case.positions, "floats": case.floats}

        def measurement(name: str = name, method: Callable[[], list[Result]] = method) -> list[dict[str, Any]]:
            labels = [name, f"{name}, Levenberg-Marquardt"]
            return [{**vars(found), "method": label} for found, label in zip(method(), labels, strict=False)]

        lines.measure(asked, measurement)


def smooth(lines: Lines, options: argparse.Namespace) -> None:
    """Every smooth target, every method."""
    for domain in options.domains:
        cases = smooth_cases(domain)
        for case in cases[2:3] if options.quick else cases:
            compared(lines, case, options, SECONDS[domain], part="smooth")


def longer(lines: Lines, options: argparse.Namespace) -> None:
    """Networks with more training, on one target of each domain."""
    for domain in [] if options.quick else options.domains:
        networks_only = argparse.Namespace(**{**vars(options), "methods": ["prefix", "network"]})
        compared(lines, smooth_cases(domain)[2], networks_only, LONGER * SECONDS[domain], part="longer")


def kinks(lines: Lines, options: argparse.Namespace) -> None:
    """A kink alone, straight and curved, 24 positions."""
    for domain in [name for name in options.domains if name != "cube"]:
        for kind in ("kink", "curved kink"):
            for case in kink_cases(domain, kind, 24, count=1 if options.quick else 2):
                compared(lines, case, options, KINK_SECONDS, part="kinks")


def waves(lines: Lines, options: argparse.Namespace) -> None:
    """A kink times a wave in another direction."""
    for domain in [name for name in options.domains if name in WAVE_POSITIONS]:
        if options.quick and domain != "S1":
            continue
        for case in kink_cases(domain, "kink times wave", WAVE_POSITIONS[domain], count=1 if options.quick else 2):
            compared(lines, case, options, WAVE_SECONDS, part="waves")


def thousandth(lines: Lines, options: argparse.Namespace) -> None:
    """How long a prefix takes to a thousandth of the error of the best network of its size: less than that, or longer?

    The network's error and seconds are those of the part `smooth`, its whole search; sines are left out.
    """
    for domain in [name for name in options.domains if name != "cube"]:
        for case in smooth_cases(domain):
            same = {"part": "smooth", "domain": domain, "target": case.name, "settings": lines.settings}
            networks = [
                line
                for line in lines.found.values()
                if same.items() <= line.items() and line["method"].startswith("network")
            ]
            if networks:
                best = min(networks, key=lambda line: float(line["error"]))
                _thousandth(lines, case, float(best["error"]), float(best["seconds"]))


def _thousandth(lines: Lines, case: Case, error: float, seconds: float) -> None:
    asked = {"part": "thousandth", "domain": case.domain_name, "target": case.name, "kind": case.kind}
    asked |= {"method": "prefix", "positions": case.positions, "tolerance": error / 1000}

    def measurement() -> list[dict[str, Any]]:
        made, found, taken = compiled(case, case.positions, drawn(case, JUDGED, 4), tolerance=error / 1000)
        told = {"error": found, "seconds": taken, "network error": error, "network seconds": seconds}
        return [{**told, "used": made.positions}]

    lines.measure(asked, measurement)


def lengths(lines: Lines, options: argparse.Namespace) -> None:
    """The lengths and errors that were asked for."""
    for domain, positions, error in ASKED:
        for case in smooth_cases(domain)[:8:4] if options.quick else smooth_cases(domain):
            _length(lines, case, positions, error, options)
    for positions, error in ((24, 1e-4), (61, 1e-6)):
        for domain in ("S1", "S2", "S3", "square", "cube"):
            for kind in ("kink", "curved kink"):
                for case in kink_cases(domain, kind, positions, count=1 if options.quick else 3):
                    _length(lines, case, positions, error, options)


def nearest(lines: Lines, options: argparse.Namespace) -> None:
    """What the construction `nearest` takes, in units of the covering bound."""
    for domain, tolerance in NEAREST[:1] if options.quick else NEAREST:
        for name in ("abs", "trig", "net", "oscillatory"):
            asked = {"part": "nearest", "domain": domain, "target": name, "method": "nearest", "tolerance": tolerance}
            lines.measure(asked, lambda d=domain, n=name, t=tolerance: [_nearest(d, n, t)])


def _length(lines: Lines, case: Case, positions: int, error: float, options: argparse.Namespace) -> None:
    asked = {"part": "lengths", "domain": case.domain_name, "target": case.name, "kind": case.kind, "method": "prefix"}
    asked |= {"positions": positions, "asked": error}

    def measurement() -> list[dict[str, Any]]:
        made, found, taken = compiled(case, positions, drawn(case, JUDGED, 4))
        return [{"method": "prefix", "error": found, "seconds": taken, "choice": made.method}]

    if options.domains and case.domain_name in options.domains:
        lines.measure(asked, measurement)


def _nearest(domain: str, name: str, tolerance: float) -> dict[str, Any]:
    """Positions in units of the covering bound for the target's Lipschitz constant, and the certificate's verdict."""
    started = time.process_time()
    made = compile_function(name, DOMAINS[domain], tolerance=tolerance, method="nearest")
    taken = time.process_time() - started
    constant = made.target.lipschitz if made.target else None
    bound = positions_for(DOMAINS[domain], tolerance / (constant or math.nan))
    verdict = str(made.certificate.verdict) if made.certificate else "none"
    return {"method": "nearest", "used": made.positions, "covering": bound, "error": made.positions / bound,
            "seconds": taken, "choice": verdict}  # fmt: skip


def certificates(lines: Lines, options: argparse.Namespace) -> None:
    """Compile and prove at a tolerance: seconds in all, those of the proof, and the bound in units of the truth."""
    for domain, tolerance, *_ in CERTIFIED:
        cases = [case for case in smooth_cases(domain) if case.kind == "smooth"]
        for case in cases[:8:4] if options.quick else cases:
            asked = {"part": "certificates", "domain": domain, "target": case.name, "method": "prefix"}
            if domain in options.domains:
                lines.measure(asked | {"tolerance": tolerance}, lambda c=case, t=tolerance: [_certificate(c, t)])


def _certificate(case: Case, tolerance: float) -> dict[str, Any]:
    """Draft, proof and check, apart; where the proof misses, the whole compilation with its tighter drafts."""
    target, started = case.target, time.process_time()
    made = compile_function(target, tolerance=tolerance, certify=False)
    drafted = time.process_time()
    proof = prove(made.head, made.chart, target, case.domain, tolerance=tolerance)
    certificate, cover = proof.certificate.sealed(), proof.cover
    proved = time.process_time()
    if certificate.verdict is not Verdict.PROVED:
        made = compile_function(target, tolerance=tolerance)
        certificate, cover = made.certificate or certificate, made.cover
    taken, checking = time.process_time() - started, time.process_time()
    parts = (made.head, made.chart, target.expression, case.domain, certificate, cover)
    checked = check(*parts, seconds=MOST_CHECKING)
    check_seconds, truth = time.process_time() - checking, _largest_error(case, made)
    return {"method": "prefix", "used": made.positions, "error": truth, "bound": certificate.bound,
            "ratio": certificate.bound / truth, "seconds": taken, "proof_seconds": proved - drafted,
            "check_seconds": check_seconds, "checked": str(checked.verdict),
            "verdict": str(certificate.verdict), "choice": made.method}  # fmt: skip


def _largest_error(case: Case, made: CompiledFunction) -> float:
    """The largest error found: at 200,000 points, then by a random climb from the worst fifty of them."""
    rng = np.random.default_rng(11)

    def error(points: np.ndarray) -> np.ndarray:
        return np.abs(made.evaluate(points) - case.target.evaluate(points))[:, 0]

    points = case.domain.sample(200_000, rng)
    found = error(points)
    best = points[np.argsort(found)[-50:]]
    for width in np.geomspace(0.02, 1e-4, 24):
        moved = np.repeat(best, 20, axis=0) + width * rng.normal(size=(20 * len(best), best.shape[1]))
        moved /= np.linalg.norm(moved, axis=1, keepdims=True)  # the certificates are on spheres
        both = np.concatenate([best[:, None], moved.reshape(len(best), 20, -1)], axis=1)
        errors = error(both.reshape(-1, best.shape[1])).reshape(len(best), 21)
        best = both[np.arange(len(best)), errors.argmax(axis=1)]
    return float(max(found.max(), errors.max()))


PARTS: dict[str, Callable[[Lines, argparse.Namespace], None]] = {
    "lengths": lengths,
    "nearest": nearest,
    "certificates": certificates,
    "kinks": kinks,
    "smooth": smooth,
    "thousandth": thousandth,
    "waves": waves,
    "longer": longer,
}

if __name__ == "__main__":
    main()
