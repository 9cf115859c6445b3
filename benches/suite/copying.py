"""The copy of a table that is there: COPY, ClickHouse's own table function, and walhouse."""

import subprocess
import time

from drain import compare_counts, finished, wait_for
from services import Daemon, Meter, binary, peak_rss, stat
from workload import FINISH, one_transaction, orders

SCENARIO = "copy"


def copy(suite):
    servers, rows = suite.servers, suite.copy_rows
    suite.say(f"initial copy: {rows:,} rows")
    database = servers.database("copying")
    database.script(orders(rows) + FINISH + one_transaction(rows))
    database.ask("VACUUM ANALYZE")
    for run in range(suite.runs):
        daemon = Daemon(servers, database, f"copying_{run}")
        walhouse(suite, daemon, run)
        copy_out(suite, database, run)
        table_function(suite, daemon, run)
        daemon.forget()
    servers.drop(database)


def walhouse(suite, daemon, run):
    """From exec until it is ready: publication, slot and tables are made, and every row is there to be read."""
    meter = Meter(suite.servers)
    began = daemon.start()
    wait_for(daemon, "the copy", daemon.ready)
    seconds = time.perf_counter() - began
    pid = daemon.process.pid
    cpu = meter.stop(stat(pid)[0], "walhouse")
    rss = peak_rss(pid)
    compare_counts(daemon, ["sales_order"])
    suite.add(SCENARIO, "walhouse", run, suite.copy_rows, seconds, cpu, peak_rss=rss,
              parts=suite.servers.clickhouse.inserted_parts(daemon.name))
    daemon.stop()


def copy_out(suite, database, run):
    for name, options in (("COPY TO STDOUT", ""), ("COPY TO STDOUT, binary", "(FORMAT binary)")):
        suite.servers.clickhouse.settle()
        meter = Meter(suite.servers)
        began = time.perf_counter()
        command = [binary("psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", database.unix, "-c",
                   f"COPY sales_order TO STDOUT {options}"]
        usage = finished(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL), "psql")
        seconds = time.perf_counter() - began
        suite.add(SCENARIO, name, run, suite.copy_rows, seconds, meter.stop(usage.ru_utime + usage.ru_stime))


def table_function(suite, daemon, run):
    """Into a table that is exactly the one that walhouse has made."""
    clickhouse, database = suite.servers.clickhouse, daemon.database
    clickhouse.ask(f"CREATE TABLE {daemon.name}.peer AS {daemon.name}.sales_order")
    clickhouse.settle()
    before = clickhouse.inserted_parts(daemon.name)
    meter = Meter(suite.servers)
    began = time.perf_counter()
    clickhouse.ask(f"INSERT INTO {daemon.name}.peer SELECT *, 0, 0 FROM postgresql("
                   f"'127.0.0.1:{suite.servers.port}', '{database.name}', 'sales_order', 'postgres', '')",
                   max_execution_time=0)
    seconds = time.perf_counter() - began
    cpu = meter.stop()
    compare_counts_of_peer(suite, daemon)
    suite.add(SCENARIO, "ClickHouse postgresql()", run, suite.copy_rows, seconds, cpu,
              parts=clickhouse.inserted_parts(daemon.name) - before)


def compare_counts_of_peer(suite, daemon):
    found = suite.servers.clickhouse.number(f"SELECT count() FROM {daemon.name}.peer FINAL")
    assert found == suite.copy_rows, f"postgresql() brought {found} rows"
