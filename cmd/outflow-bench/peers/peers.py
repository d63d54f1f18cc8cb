"""Measures outflow beside its peers, in turns. README.md says how, and what it needs; run starts it."""

import argparse
import contextlib
import datetime
import json
import pathlib
import signal
import statistics
import sys

import api
import killed
import latency
import relay
from stand import Postgres

PARTS = {"api": api, "relay": relay, "latency": latency, "killed": killed}

# What a table shows of a run, and how it is called there.
COLUMNS = {
    "lost": "lost", "duplicated": "delivered twice", "keys_back": "keys that went back in version", "at_kill": "offsets when killed",
    "per_second": "per second", "second_half": "second half", "p50_ms": "p50 ms", "p99_ms": "p99 ms", "first_after_s": "first record after, s",
    "last_after_s": "last record after, s", "peak_mb": "peak memory, MB", "pss_mb": "of it its own (PSS at the end)", "cpu_s": "CPU s",
}


def machine():
    steal = pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[8]
    return {"date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "loadavg": pathlib.Path("/proc/loadavg").read_text().strip(), "steal_ticks": int(steal)}


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("parts", nargs="*", help="api, relay, latency, killed; all without one")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--scale", type=float, default=1, help="multiplies how much is done in a run")
    options.add_argument("--side", default="", help="only sides whose names begin so")
    options.add_argument("--out", default="-", help="where every run goes, a line of JSON each, with the machine's load before and after")
    o = options.parse_args()
    if unknown := set(o.parts) - set(PARTS):
        options.error(f"no such part: {', '.join(sorted(unknown))}")
    postgres = Postgres()
    try:
        with open(o.out, "a") if o.out != "-" else contextlib.nullcontext(sys.stderr) as out:
            for name in o.parts or PARTS:
                sides = [s for s in PARTS[name].sides(postgres, o.scale) if s[0].startswith(o.side)]
                if name != "killed":
                    print(f"{name}: warming up", file=sys.stderr, flush=True)
                    PARTS[name].sides(postgres, o.scale / 10)[0][1]()  # servers that have just started are slow
                print(table(name, measure(name, sides, o.rounds, out)), flush=True)
    finally:
        postgres.close()


def measure(part, sides, rounds, out):
    """All rounds of a part. In every round another side begins."""
    found = {name: [] for name, _ in sides}
    for r in range(rounds):
        turn = r % len(sides)
        for name, run in sides[turn:] + sides[:turn]:
            print(f"{part}, round {r + 1}: {name}", file=sys.stderr, flush=True)
            before = machine()
            result = run()
            found[name].append(result)
            print(json.dumps({"part": part, "round": r + 1, "side": name, **result, "before": before, "after": machine()}), file=out, flush=True)
    return found


def table(part, found):
    columns = [c for c in COLUMNS if any(c in run for runs in found.values() for run in runs)]
    lines = [f"\n{part}: medians (least-greatest)", "", "| | " + " | ".join(COLUMNS[c] for c in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, runs in found.items():
        cells = [[run[c] for run in runs if c in run] for c in columns]
        lines.append(f"| {name} | " + " | ".join(f"{statistics.median(v):g} ({min(v):g}-{max(v):g})" if v else "" for v in cells) + " |")
    return "\n".join(lines)


def stop(*_):
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    main()
