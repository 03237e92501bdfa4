"""Whole-model decode speed on one GPU with random weights at a true shape: dense and every level in one process.

    larosa bench --model llama2-7b --levels 0,0.25,0.4,0.5,0.75 \\
        --overhead none --json OUT.json

Needs torch, triton, numpy and transformers, nothing else of larosa's dependencies: in a checkout without an
installation, `PYTHONPATH=kernels:. python -m larosa.decode.benchmark` does the same. Shapes come from
conf/model/NAME.yaml. The parity check runs first, on the model's first layers at every plan that is timed; nothing is
timed unless it passes. `--overhead adapter` puts one D x D product in front of every layer but the first (the paper's
form), `int8` two int8 transforms in every layer (output_aware). `--thresholds` times the same levels with calibrated
thresholds in place of exact selection, which shows what selection costs. `--quantization w8` (one scale per output
channel) or `w4` (one scale per 64 output channels of an input channel) quantises the random weights, `--head-w8` the
head, `--adapters-w8` the adapters; the dense bf16 rows run on the dequantised weights.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from larosa.commands import typed
from larosa.errors import LarosaError
from larosa.records.checksum import sealed
from larosa.records.disk import write_atomically

OVERHEADS: dict[str, dict[str, Any]] = {
    "none": {},
    "adapter": {"adapters": 1},
    "adapters": {"adapters": 2},
    "int8": {"transforms": "int8"},
    "transform": {"transforms": "model"},
}
SCHEMES: dict[str, str | None] = {"none": None, "w8": "w8", "w4": "w4_out"}


def numbers(text: str) -> list[float]:
    """`0,0.25,0.5` as numbers."""
    return [float(part) for part in text.split(",")]


def integers(text: str) -> list[int]:
    """`64,256` as integers."""
    return [int(part) for part in text.split(",")]


def arguments(words: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=typed("bench"), description="Whole-model decode speed, dense and sparse in one process."
    )
    parser.add_argument("--model", default="llama2-7b", help="a file of conf/model")
    parser.add_argument("--levels", type=numbers, default=[0.0, 0.25, 0.4, 0.5, 0.75], help="fractions, one plan each")
    parser.add_argument("--overhead", choices=OVERHEADS, default="none")
    parser.add_argument("--quantization", choices=SCHEMES, default="none", help="the projections' format")
    parser.add_argument("--head-w8", action="store_true", help="the head quantised to int8")
    parser.add_argument("--adapters-w8", action="store_true", help="the adapters of --overhead quantised to int8")
    parser.add_argument("--contexts", type=integers, default=[1024], help="tokens in the cache before the first")
    parser.add_argument("--new-tokens", type=integers, default=[64], help="output lengths, timed a token")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--prefill", type=integers, default=[], help="prompt lengths, both weight layouts timed")
    parser.add_argument("--ties", choices=["strict", "keep"], default="strict")
    parser.add_argument("--thresholds", action="store_true", help="time thresholds beside exact selection")
    parser.add_argument("--no-search-range", action="store_true", help="search without calibrated search ranges")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--backend", choices=["auto", "triton", "reference"], default="auto")
    parser.add_argument("--device", help="default: the GPU if there is one")
    parser.add_argument("--layers", type=int, help="cut the model, for a quick look; the record says so")
    parser.add_argument("--parity-layers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the record here")
    return parser.parse_args(words)


def command(words: list[str]) -> str:
    """The command line, without where its record went."""
    kept = [word for before, word in zip(["", *words], words, strict=False) if "--json" not in (before, word)]
    return " ".join([typed("bench"), *kept])


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, a line a row."""
    lines = [
        "| | context + new | ms p20 / p50 / p80 | tokens/s | GB a token | of peak | speed-up |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ms, peak = row["ms_per_token"], row["share_of_peak"]
        lines.append(
            f"| {row['name']} | {row['context']} + {row['new_tokens']} "
            f"| {ms['p20']:.3f} / {ms['p50']:.3f} / {ms['p80']:.3f} | {row['tokens_per_s']:.1f} "
            f"| {row['read_bytes']['total'] / 1e9:.3f} | {'-' if peak is None else f'{100 * peak:.0f} %'} "
            f"| {row['speedup']:.2f}x |"
        )
    return "\n".join(lines)


def measure(words: list[str]) -> None:
    """Check parity, time, write, print. Raises LarosaError."""
    options = arguments(words)
    if options.prefill and (options.quantization != "none" or options.head_w8):
        raise SystemExit("--prefill times bf16 weights in two layouts: expected no --quantization and no --head-w8")
    if options.adapters_w8 and not OVERHEADS[options.overhead].get("adapters"):
        raise SystemExit(f"--adapters-w8: expected --overhead adapter or adapters, got {options.overhead}")
    from larosa.decode.true_shape import measured  # torch and transformers wait until the options are read

    record = measured(options) | {"command": command(words)}
    if options.json is not None:
        content = json.dumps(sealed(record), indent=1, allow_nan=False) + "\n"
        write_atomically(options.json, content.encode())
    report(record, options)


def report(record: dict[str, Any], options: argparse.Namespace) -> None:
    """Print the rows, and what selection costs."""
    for context, costs in record["selection_us"].items():
        for level, cost in costs.items():
            print(f"context {context}, {level}: one exact selection costs {cost:.2f} us", file=sys.stderr)
    layers = f", {options.layers} layers only" if options.layers else ""
    formats = f", {options.quantization}{', head w8' if options.head_w8 else ''}"
    print(
        f"{options.model}{layers}, overhead {options.overhead}, {options.dtype}{formats}, batch 1, {record['device']}\n"
    )
    print(table(record["rows"]))
    for row in record.get("prefill", []):
        print(
            f"prompt of {row['tokens']}, {row['layout']}: {row['ms']['p50']:.2f} ms, {row['tokens_per_s']:.0f} tokens/s"
        )


def main() -> None:
    """The command; a mistake ends in one message."""
    try:
        measure(sys.argv[1:])
    except LarosaError as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error


if __name__ == "__main__":
    main()
