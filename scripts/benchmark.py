"""Measure the package's speed, each line against a bound measured in the same run.

python scripts/benchmark.py --output bench.json
"""

import argparse
import json
import sys
from pathlib import Path


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Time the package against what the hardware must do for it: the two take turns, so that a noisy "
        "machine slows both alike. Every line shows median, lowest and highest."
    )
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument(
        "--sizes",
        choices=("small", "published"),
        default="small",
        help="small (default): the published networks on small images, minutes on a laptop; published: crop 368",
    )
    parser.add_argument("--repeats", type=int, default=3, help="runs of every line after a first one (default: 3)")
    parser.add_argument(
        "--precision", choices=("fp32", "bf16"), default="fp32", help="bf16: under autocast, as mixed precision trains"
    )
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: count this process's CPU time, for a machine that does other work (with OMP_NUM_THREADS=1)",
    )
    parser.add_argument("--lines", nargs="+", metavar="TEXT", help="only lines whose name contains one of these")
    parser.add_argument("--output", type=Path, help="JSON file to write; a Markdown table goes beside it")
    parser.add_argument("--check", action="store_true", help="exit 1 when a line misses its bound")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    # Imported here, so that --help answers at once.
    from cagnet_hf.cli import run
    from cagnet_hf.files import check_output, made_by, write_text_whole
    from scripts.speed.lines import lines
    from scripts.speed.measuring import Setting, describe, facts_of, markdown, measure, verdict

    results, mark = [], made_by("benchmark")

    def benchmark():
        for path in (args.output, args.output.with_suffix(".md")) if args.output else ():
            check_output(path, mark)
        setting = Setting(args.device, args.sizes == "published", args.precision == "bf16", args.repeats, args.clock)
        facts = facts_of(setting)
        for line in lines(setting):
            if args.lines and not any(text in line.name for text in args.lines):
                continue
            results.append(measure(line, setting))
            print(f"{line.name}: {describe(results[-1])} {verdict(results[-1])}", flush=True)
        if not results:
            raise ValueError(f"no line's name contains {' or '.join(args.lines)}")
        if args.output:
            content = json.dumps({"made_by": mark, "facts": facts, "lines": results}, indent=1, ensure_ascii=False)
            write_text_whole(args.output, content + "\n")
            write_text_whole(args.output.with_suffix(".md"), f"{markdown(results, facts)}\n<!-- {mark} -->\n")

    code = run(benchmark)
    return code or int(args.check and any(result["met"] is False for result in results))


if __name__ == "__main__":
    # Not this folder, whose evaluate.py would hide the library of that name.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    sys.exit(main())
