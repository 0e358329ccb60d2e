"""How much memory does a prefix take while it is read, against PEFT prefix tuning and the bare model?

Each cell runs in a process of its own: load the model and the prefix, reset the kernel's high-water mark of resident
memory, run, read the mark. The figure is the peak above the loaded model and prefix, in MB (10^6 bytes); a rival that
needs more than --limit-gb is stopped, and the result says so. Linux only (/proc/self/clear_refs).

    .venv/bin/python benchmarks/engine/memory.py                  # the cells in results/memory.jsonl
    .venv/bin/python benchmarks/engine/memory.py --what fit --prefix 1024 --batch 8
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import resource
import subprocess
import sys
from pathlib import Path

import psutil
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from run import MODELS, Rivals

from foreword.record import Stopwatch, command_line

RESULTS = Path(__file__).resolve().parent / "results" / "memory.jsonl"
CELLS = [("gpt2", "decode", 4096, 8), ("gpt2", "decode", 4096, 32), ("gpt2", "fit", 1024, 8)]


def peak_above(model: str, what: str, prefix: int, batch: int, who: str, limit_gb: float) -> float:
    """Peak resident MB above the loaded model and prefix, in this process."""
    rivals = Rivals(model, prefix, only=who)
    run = getattr(rivals, what)(batch)[who]
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed after loading is no part of the floor
    before = psutil.Process().memory_info().rss
    resource.setrlimit(resource.RLIMIT_DATA, (int(limit_gb * 1e9), resource.RLIM_INFINITY))
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    with torch.set_grad_enabled(what == "fit"):
        run()
    marks = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines())
    return (int(marks["VmHWM"].split()[0]) * 1024 - before) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="gpt2")
    parser.add_argument("--what", choices=("decode", "prefill", "fit"))
    parser.add_argument("--prefix", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--limit-gb", type=float, default=13.0)
    parser.add_argument("--who", choices=("bare", "peft", "ours"), help="measure this one, in this process")
    chosen = parser.parse_args()
    if chosen.who:
        told = (chosen.model, chosen.what, chosen.prefix, chosen.batch, chosen.who, chosen.limit_gb)
        print(json.dumps(peak_above(*told)))
        return
    cells = CELLS if chosen.what is None else [(chosen.model, chosen.what, chosen.prefix, chosen.batch)]
    for model, what, prefix, batch in cells:
        watch = Stopwatch(command_line())
        found: dict[str, float | str] = {}
        for who in ("bare", "ours", "peft"):
            if (who, what) == ("bare", "fit"):
                continue
            options = ["--model", model, "--what", what, "--prefix", str(prefix), "--batch", str(batch)]
            options += ["--limit-gb", str(chosen.limit_gb), "--who", who]
            done = subprocess.run([sys.executable, __file__, *options], capture_output=True, text=True)
            is_told = done.returncode == 0
            found[who] = float(done.stdout.splitlines()[-1]) if is_told else f"stopped at {chosen.limit_gb:g} GB"
            if not is_told and "memory" not in done.stderr:
                raise SystemExit(done.stderr)
        line = {"model": model, "what": what, "prefix": prefix, "batch": batch, "megabytes": found}
        print(line, flush=True)
        RESULTS.parent.mkdir(exist_ok=True)
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**line, "record": watch.record().as_dict()}) + "\n")


if __name__ == "__main__":
    main()
