#!/usr/bin/env python3
"""The benchmarks: real servers, a release build, every system on the same work in the same run, one after another.

    python3 benches/suite            measures, prints a table, and writes target/bench/result.{json,md,svg}
    python3 benches/suite publish    writes the last result into benches/README.md

Environment: BENCH=smoke is small and quick, and only shows that the suite works. BENCH_RUNS is how often each is measured
(3, smoke 1). BENCH_ONLY=narrow,copy,steady picks scenarios. BENCH_ROWS=narrow=500000,copy=1000000 sets sizes.
BENCH_RATE (1000) and BENCH_SECONDS (30, smoke 5) are the steady load. BENCH_VERIFY=0 leaves out the comparison of both
sides, value by value, after each scenario. BENCH_DIRECTORY (/tmp) is where the servers have their files: 20 GB.
"""

import datetime
import os
import platform
import signal
import subprocess
import sys

import materialized
import report
from copying import copy
from drain import drain
from events import events
from latency import latency
from scrape import scrapes
from services import ROOT, Failed, Servers
from workload import COPY_ROWS, COPY_SMOKE, WORKLOADS


class Suite:
    """What was asked for, and what was found."""

    def __init__(self):
        env = os.environ.get
        self.smoke = env("BENCH") == "smoke"
        self.runs = int(env("BENCH_RUNS") or (1 if self.smoke else 3))
        self.rate = int(env("BENCH_RATE") or 1000)
        self.seconds = int(env("BENCH_SECONDS") or (5 if self.smoke else 30))
        self.verify = env("BENCH_VERIFY") != "0"
        self.sizes = {name: int(rows) for name, _, rows in
                      (pair.partition("=") for pair in (env("BENCH_ROWS") or "").split(",") if pair)}
        self.copy_rows = self.sizes.get("copy", COPY_SMOKE if self.smoke else COPY_ROWS)
        scenarios = [workload.name for workload in WORKLOADS] + ["copy", "steady", "events", "metrics"]
        self.only = [name for name in (env("BENCH_ONLY") or "").split(",") if name] or scenarios
        unknown = [name for name in [*self.only, *self.sizes] if name not in scenarios]
        if unknown:
            raise Failed(f"there is no scenario {unknown[0]}: {', '.join(scenarios)}")
        titles = {workload.name: f"Drain: {workload.title}" for workload in WORKLOADS} | {"copy": "Initial copy"}
        self.result = {"smoke": self.smoke, "runs": self.runs, "partial": set(self.only) != set(scenarios),
                       "verified": self.verify, "titles": titles, "measurements": []}
        self.servers = None

    def rows(self, workload):
        return self.sizes.get(workload.name, workload.smoke if self.smoke else workload.rows)

    def add(self, scenario, system, run, rows, seconds, cpu, **more):
        one = {"scenario": scenario, "system": system, "run": run, "rows": rows, "seconds": seconds, "cpu": cpu, **more}
        self.result["measurements"].append(one)
        self.say(f"    {system:28} {seconds:8.2f} s {rows / seconds:12,.0f} rows/s")

    @staticmethod
    def say(text):
        print(text, flush=True)

    def describe(self):
        git = lambda *command: subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True).stdout.strip()
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), platform.machine())
        database = self.servers.database("about")
        self.has_peer = materialized.available(self.servers)
        self.result |= {
            "date": datetime.date.today().isoformat(), "commit": git("rev-parse", "--short=10", "HEAD"),
            "dirty": bool(git("status", "--porcelain")),
            "postgres": " ".join(database.ask("SELECT version()").split()[:2]),
            "clickhouse": self.servers.clickhouse.ask("SELECT version()"),
            "machine": {"cpu": model, "cpus": os.cpu_count(), "kernel": platform.release(), "load": os.getloadavg()[0],
                        "memory_gib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30},
            "peer": self.has_peer,
        }
        self.servers.drop(database)

    def run(self):
        self.servers = Servers()
        try:
            self.servers.start()
            self.describe()
            for workload in WORKLOADS:
                if workload.name in self.only:
                    drain(self, workload)
            if "copy" in self.only:
                copy(self)
            if "steady" in self.only:
                latency(self)
            if "events" in self.only:
                events(self)
            if "metrics" in self.only:
                scrapes(self)
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            self.servers.close()
        report.write(self.result)
        self.say("\n" + report.terminal(self.result) + f"\n\nIn full: {report.OUTPUT}/result.json, .md and .svg")


def interrupted(_signal, _frame):
    raise KeyboardInterrupt


def must(command, why):
    if subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL).returncode != 0:
        raise Failed(why)


def main():
    signal.signal(signal.SIGTERM, interrupted)
    if sys.argv[1:] == ["publish"]:
        return report.publish()
    if sys.argv[1:]:
        sys.exit(__doc__)
    suite = Suite()
    must([os.path.join(ROOT, "tests/services/install")], "what the benchmarks need could not be installed")
    must(["cargo", "build", "--release", "--locked", "--bin", "walhouse"], "walhouse could not be built")
    suite.run()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failed as failure:
        sys.exit(f"bench: {failure}")
    except KeyboardInterrupt:
        sys.exit("bench: interrupted; nothing is left running")
