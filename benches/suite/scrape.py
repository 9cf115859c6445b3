"""Metrics: how long a page of them takes while rows stream into thousands of tables, each of which has series of its own."""

import contextlib
import http.client
import os
import subprocess
import threading
import time

from latency import quantiles
from services import Daemon, Failed, Meter, binary, peak_rss, stat, tail
from workload import FINISH

# As many as metrics.max_tables lets have series of their own.
TABLES = 2000
SMOKE_TABLES = 100
INTERVAL = 0.1
# Scrapes while nothing else happens, whose processor time is walhouse's alone.
ALONE = 100
LOAD = "\\set t random(0, {last})\nINSERT INTO item_:t (n, note) SELECT n, 'what is in stock' FROM generate_series(1, 20) n;\n"
LABELLED = ["walhouse_rows_received_total", "walhouse_rows_written_total", "walhouse_copy_rows_total",
            "walhouse_copy_progress_ratio"]


class Scraper(threading.Thread):
    """Asks as Prometheus does, a connection each time, and takes the time until the last byte."""

    def __init__(self, port):
        super().__init__(daemon=True)
        self.port = port
        self.seconds = []
        self.size = 0
        self.stopping = threading.Event()
        self.failure = None

    def run(self):
        try:
            while not self.stopping.is_set():
                began = time.perf_counter()
                self.size = len(scrape(self.port))
                self.seconds.append(time.perf_counter() - began)
                self.stopping.wait(max(0.0, INTERVAL - self.seconds[-1]))
        except Exception as error:  # The main thread tells.
            self.failure = error


def scrape(port):
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        body = answer.read()
    if answer.status != 200:
        raise Failed(f"/metrics: {answer.status}")
    return body


def scrapes(suite):
    servers, tables = suite.servers, SMOKE_TABLES if suite.smoke else TABLES
    suite.say(f"metrics: {tables:,} tables, as many rows as go in for {suite.seconds} s, a scrape every {INTERVAL} s")
    database = servers.database("metrics")
    database.script(FINISH)
    for first in range(0, tables, 200):
        # Locks of one transaction are bounded.
        database.script("\n".join(
            f"CREATE TABLE item_{number} (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, n int, note text);"
            f"INSERT INTO item_{number} (n, note) VALUES (0, 'copied');" for number in range(first, min(first + 200, tables))))
    daemon = Daemon(servers, database, "metrics_0")
    daemon.start()
    daemon.wait_ready()
    # Every table has had rows of the stream too.
    for first in range(0, tables, 200):
        database.script("\n".join(f"INSERT INTO item_{number} (n, note) VALUES (1, 'streamed');"
                                  for number in range(first, min(first + 200, tables))))
    settled(daemon, tables)
    scraper, used = Scraper(daemon.port), stat(daemon.process.pid)[0]
    scraper.start()
    meter, began = Meter(servers), time.perf_counter()
    load(suite, database, tables)
    seconds = time.perf_counter() - began
    scraper.stopping.set()
    scraper.join()
    if scraper.failure:
        raise Failed(f"/metrics: {scraper.failure}\n{tail(daemon.log)}")
    cpu = meter.stop(stat(daemon.process.pid)[0] - used, "walhouse")
    rows = sum(number for name, number in series(daemon) if name == "walhouse_rows_received_total")
    settled(daemon, tables, database.number("SELECT sum(n_tup_ins) FROM pg_stat_user_tables WHERE relname ~ '^item_'"))
    suite.result["metrics"] = {
        "tables": tables, "series": sum(1 for _ in series(daemon)), "bytes": scraper.size, "rows_per_second": rows / seconds,
        "scrapes": len(scraper.seconds), "scrape_seconds": quantiles(scraper.seconds), "others_share": cpu["others_share"],
        "load": os.getloadavg()[0], "cpu_seconds": cpu, "peak_rss": peak_rss(daemon.process.pid),
    } | alone(daemon)
    daemon.stop()
    daemon.forget()
    servers.drop(database)


def alone(daemon):
    """The same page while no row comes: what a scrape costs, whatever else the machine does."""
    pid = daemon.process.pid
    began, before = time.perf_counter(), stat(pid)[0]
    time.sleep(ALONE * INTERVAL / 2)
    idle = (stat(pid)[0] - before) / (time.perf_counter() - began)
    began, before, seconds = time.perf_counter(), stat(pid)[0], []
    for _ in range(ALONE):
        asked = time.perf_counter()
        scrape(daemon.port)
        seconds.append(time.perf_counter() - asked)
    used = stat(pid)[0] - before - idle * (time.perf_counter() - began)
    return {"cpu_milliseconds_per_scrape": used / ALONE * 1e3, "alone_seconds": quantiles(seconds)}


def series(daemon):
    for line in scrape(daemon.port).decode().splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            yield name.partition("{")[0], float(value)


def settled(daemon, tables, rows=0):
    """Every table has its series, and nothing is on its way."""
    deadline = time.monotonic() + 600
    while True:
        counts, written = dict.fromkeys(LABELLED, 0), 0
        for name, value in series(daemon):
            if name in counts:
                counts[name] += 1
            written += value if name in ("walhouse_rows_written_total", "walhouse_copy_rows_total") else 0
        if min(counts.values()) >= tables and written >= rows:
            return
        daemon.check_alive()
        if time.monotonic() > deadline:
            raise Failed(f"after ten minutes {counts} have series, and {written} of {rows} rows are written:\n{tail(daemon.log)}")
        time.sleep(0.5)


def load(suite, database, tables):
    script, log = (os.path.join(suite.servers.directory, name) for name in ("scrape.sql", "pgbench.log"))
    with open(script, "w", encoding="utf-8") as file:
        file.write(LOAD.format(last=tables - 1))
    with open(log, "ab") as file:
        done = subprocess.run([binary("pgbench"), "-n", "-c", "4", "-T", str(suite.seconds), "-f", script, database.tcp],
                              stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    if done.returncode != 0:
        raise Failed(f"pgbench:\n{tail(log)}")
