"""`make bench-gpu`: what the learner costs on one CUDA card. torch alone: no Ray, no vLLM.

    head         log-probabilities of 32,768 positions over 152,064 tokens, forward and backward, beside all logits
    update-1.5b  a whole update of a 1.5B model, sequences of 16,384 and 32,768 tokens after prompts of 2,048
    slice-14b    the same of 4 layers of the 14B model with its embedding and head, 34,816 tokens a sequence
    offload      the same slice with what layers keep in host memory, beside keeping it on the card

Weights and tokens are random: neither changes the time. The model goes through the trainer's own `LearnerRank`, from
files, as a rank of a run does. Each figure is the median of 5 after 2 to warm up. MFU counts 6 FLOP a parameter and
token, causal attention as half and no recomputation (deepcoder_trainer/grpo/flops.py), against 989 TFLOP/s. Updates are
measured with the attention that torch has built in and, where its package is installed, with FlashAttention 3. The last
line is one JSON object; `unmet` names the targets that were missed.

    python benchmarks/gpu.py [--parts head,update-1.5b] [--tiny] [--page docs/results/gpu.md]

`--tiny` runs all of it on a CPU with toy sizes, to see that it works: its figures mean nothing. Without a CUDA card
anything else exits 64.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
from pathlib import Path
from typing import Any, Final

PARTS: Final = ("head", "update-1.5b", "slice-14b", "offload")
LEAST: Final = {
    "head_memory_ratio": 20.0,
    "mfu_1_5b_16k": 0.30,
    "mfu_1_5b_32k": 0.33,
    "mfu_slice_14b": 0.38,
    "fa3.mfu_1_5b_16k": 0.35,
    "fa3.mfu_1_5b_32k": 0.45,
    "fa3.mfu_slice_14b": 0.45,
}
MOST: Final = {"head_time_ratio": 2.0, "offload_time_ratio": 1.06}


def main() -> int:
    """Measure the chosen parts, print a table, end with one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--tiny", action="store_true", help="toy sizes on a CPU")
    parser.add_argument("--page", type=Path, help="write a dated page here")
    options = parser.parse_args()
    parts = options.parts.split(",")
    if unknown := sorted(set(parts) - set(PARTS)):
        print(f"bench-gpu: --parts names {', '.join(unknown)}: use some of {', '.join(PARTS)}", file=sys.stderr)
        return 64
    import torch

    if not options.tiny and not torch.cuda.is_available():
        print(
            "bench-gpu: torch sees no CUDA device: run this on a machine with one card and torch's CUDA build, or "
            "give --tiny to see it work on a CPU",
            file=sys.stderr,
        )
        return 64
    from gpu_parts import TINY, WHOLE, measure

    device = torch.device("cpu" if options.tiny else "cuda")
    figures = measure(parts, TINY if options.tiny else WHOLE, device)
    # Toy sizes miss or meet a target by chance: neither is said.
    figures["unmet"] = [] if options.tiny else unmet(figures)
    table = "\n".join(f"| {name} | {_text(value)} |" for name, value in figures.items())
    print(table)
    if options.page:
        options.page.parent.mkdir(parents=True, exist_ok=True)
        options.page.write_text(page(table, torch.__version__, options.tiny))
    print(json.dumps(figures))
    return 1 if figures["unmet"] else 0


def unmet(figures: dict[str, Any]) -> list[str]:
    """Names of targets that were measured and missed."""
    flat = figures | {f"fa3.{name}": value for name, value in (figures["fa3"] or {}).items()}
    low = [name for name, least in LEAST.items() if flat.get(name) is not None and flat[name] < least]
    return low + [name for name, most in MOST.items() if flat.get(name) is not None and flat[name] > most]


def page(table: str, version: str, tiny: bool) -> str:
    """The dated page."""
    note = "Toy sizes on a CPU: these figures mean nothing.\n\n" if tiny else ""
    return (
        f"# `make bench-gpu`, {datetime.date.today().isoformat()}\n\n{note}{platform.platform()}, torch "
        f"{version}. What is measured, and how: the head of benchmarks/gpu.py.\n\n"
        f"| figure | value |\n|---|---|\n{table}\n"
    )


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value)


if __name__ == "__main__":
    sys.exit(main())
