"""The real servers, walhouse itself, and what each of them has used of the machine."""

import contextlib
import ctypes
import glob
import http.client
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

ROOT = os.path.realpath(os.path.join(os.path.dirname(__file__), "..", ".."))
TARGET = os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target"))
WALHOUSE = os.path.join(TARGET, "release", "walhouse")
PUBLICATION = "bench"
TICK = os.sysconf("SC_CLK_TCK")
# Its own statistics and its vacuum would be somebody else's work in the middle of a measurement.
SETTINGS = {"autovacuum": "off", "max_wal_size": "16GB", "checkpoint_timeout": "1h", "shared_buffers": "256MB"}


class Failed(Exception):
    """Ends the run with a message."""


def free_port():
    """Below the ephemeral range, so that no outgoing connection takes it before its server does."""
    while True:
        port = random.randrange(15000, 32000)
        with contextlib.closing(socket.socket()) as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def tail(path, lines=15):
    with open(path, encoding="utf-8", errors="replace") as file:
        return "".join(file.readlines()[-lines:])


def end_with_parent():
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def binary(name):
    """Debian's programs of these names are Perl scripts that look for the right one, which takes a while."""
    found = max(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"), default=None) or shutil.which(name)
    if not found:
        raise Failed(f"{name} is missing: run tests/services/install first")
    return found


class Session:
    """One psql that stays, so that a question costs neither a process nor a connection."""

    def __init__(self, url):
        self.process = subprocess.Popen([binary("psql"), "-X", "-q", "-At", "-F", "\t", "-d", url], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def ask(self, sql):
        mark = "end-of-answer"
        self.process.stdin.write(f"{sql};\n\\echo {mark} :ERROR\n")
        self.process.stdin.flush()
        lines = []
        for line in self.process.stdout:
            if line.startswith(mark):
                if line.split()[1] == "true":
                    raise Failed(f"psql: {sql}: {' '.join(lines)}")
                return "\n".join(lines)
            lines.append(line.rstrip("\n"))
        raise Failed(f"psql ended: {sql}: {' '.join(lines)}")

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


class Database:
    """One database of the PostgreSQL server."""

    def __init__(self, directory, port, name):
        self.name = name
        self.tcp = f"postgres://postgres@127.0.0.1:{port}/{name}"
        self.unix = f"host={directory} port={port} user=postgres dbname={name}"
        self.session = Session(self.tcp)
        self.ask = self.session.ask

    def script(self, sql):
        done = subprocess.run([binary("psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", self.tcp], input=sql, text=True,
                              capture_output=True)
        if done.returncode != 0:
            raise Failed(f"psql: {done.stderr.strip()}")

    def number(self, sql):
        return int(self.ask(sql))

    def mark_end(self):
        """A position before the end of the last commit: whoever is past it has seen everything."""
        answer = self.ask("BEGIN; INSERT INTO finish DEFAULT VALUES; "
                          "SELECT pg_current_wal_insert_lsn(), pg_current_wal_insert_lsn() - '0/0'::pg_lsn; COMMIT")
        text, position = answer.split("\t")
        return text, int(position)

    def confirmed(self, slot):
        return self.number(f"SELECT confirmed_flush_lsn - '0/0'::pg_lsn FROM pg_replication_slots WHERE slot_name = '{slot}'")

    def drop_slots(self, only=None):
        here = f"FROM pg_replication_slots WHERE database = '{self.name}'" + (f" AND slot_name = '{only}'" if only else "")
        for _ in range(200):
            self.ask(f"SELECT pg_terminate_backend(active_pid) {here} AND active")
            self.ask(f"SELECT pg_drop_replication_slot(slot_name) {here} AND NOT active")
            if self.number(f"SELECT count(*) {here}") == 0:
                return
            time.sleep(0.05)
        raise Failed(f"the slots of {self.name} can not be dropped")


class ClickHouse:
    def __init__(self, port):
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=3600)
        self.used = time.monotonic()

    def send(self, sql, **settings):
        # The server hangs up on a connection that rests; a closed one is opened again by itself.
        if time.monotonic() - self.used > 2:
            self.connection.close()
        self.connection.request("POST", "/?" + urllib.parse.urlencode(settings), body=sql.encode())
        answer = self.connection.getresponse()
        body = answer.read()
        self.used = time.monotonic()
        if answer.status != 200:
            raise Failed(f"ClickHouse: {sql}: {body.decode(errors='replace').strip()}")
        return body

    def ask(self, sql, **settings):
        return self.send(sql, **settings).decode().rstrip("\n")

    def number(self, sql):
        return int(self.ask(sql))

    def inserted_parts(self, database):
        """Each inserted part has a number of its own within its table, which merged parts keep as a range."""
        return self.number("SELECT sum(top) FROM (SELECT max(max_block_number) AS top FROM system.parts WHERE "
                           f"database = '{database}' AND NOT startsWith(table, '_') GROUP BY table)")

    def settle(self, seconds=60):
        """Merges of one measurement must not run into the next one."""
        deadline = time.monotonic() + seconds
        while self.number("SELECT count() FROM system.merges") and time.monotonic() < deadline:
            time.sleep(0.1)


class Servers:
    """Both servers, in a directory that goes with them."""

    def __init__(self):
        # Short, for the Unix socket, and open to the account that PostgreSQL runs under.
        self.directory = tempfile.mkdtemp(prefix="walhouse-bench-", dir=os.environ.get("BENCH_DIRECTORY", "/tmp"))
        os.chmod(self.directory, 0o755)
        self.server_end, self.lifeline = os.pipe()
        self.processes = []
        self.daemons = []
        self.databases = []

    def start(self):
        self.port = free_port()
        settings = [argument for pair in SETTINGS.items() for argument in ("--setting", "=".join(pair))]
        self.server("postgres", "--version", "15", "--port", str(self.port), *settings)
        with open(os.path.join(self.directory, "postgres", "postmaster.pid"), encoding="utf-8") as file:
            self.postmaster = int(file.readline())
        port = free_port()
        self.clickhouse_pid = self.server("clickhouse", "--http-port", str(port)).pid
        self.clickhouse = ClickHouse(port)

    def server(self, kind, *arguments):
        directory = os.path.join(self.directory, kind)
        with open(directory + ".log", "ab") as log:
            process = subprocess.Popen(
                [os.path.join(ROOT, "tests/services/server.py"), kind, "--remove", "--dir", directory, *arguments],
                stdin=self.server_end, stdout=subprocess.PIPE, stderr=log, start_new_session=True)
        self.processes.append(process)
        if process.stdout.readline().strip() != b"ready":
            raise Failed(f"{kind} did not start:\n{tail(directory + '.log')}")
        process.stdout.close()
        return process

    def database(self, name):
        admin = Session(f"postgres://postgres@127.0.0.1:{self.port}/postgres")
        admin.ask(f"CREATE DATABASE {name} TEMPLATE template0")
        admin.close()
        database = Database(os.path.join(self.directory, "postgres"), self.port, name)
        database.ask("SET synchronous_commit = off; SET client_min_messages = warning")
        self.databases.append(database)
        return database

    def drop(self, database):
        database.drop_slots()
        database.session.close()
        self.databases.remove(database)
        admin = Session(f"postgres://postgres@127.0.0.1:{self.port}/postgres")
        admin.ask(f"DROP DATABASE {database.name} WITH (FORCE)")
        admin.ask("CHECKPOINT")
        admin.close()

    def close(self):
        for daemon in self.daemons:
            daemon.kill()
        for database in self.databases:
            with contextlib.suppress(Failed, OSError):
                database.drop_slots()
                database.session.close()
        os.close(self.server_end)
        os.close(self.lifeline)
        for process in self.processes:
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


class Daemon:
    """`walhouse run` for one slot and one ClickHouse database, both called `name`; with the defaults, but perhaps for
    lines of its section `source`."""

    def __init__(self, servers, database, name, source=""):
        self.name = name
        self.servers = servers
        self.database = database
        self.port = free_port()
        self.config = os.path.join(servers.directory, f"{name}.toml")
        self.log = os.path.join(servers.directory, f"{name}.log")
        self.process = None
        servers.daemons.append(self)
        with open(self.config, "w", encoding="utf-8") as file:
            file.write(f'[source]\nurl = "{database.tcp}"\nslot = "{name}"\npublication = "{PUBLICATION}"\n{source}\n'
                       f'[clickhouse]\nurl = "{servers.clickhouse.url}"\ndatabase = "{name}"\n\n'
                       f'[http]\nlisten = "127.0.0.1:{self.port}"\n')

    def start(self):
        """Returns the moment before exec."""
        with open(self.log, "ab") as log:
            began = time.perf_counter()
            self.process = subprocess.Popen([WALHOUSE, "run", "--config", self.config], stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=log, preexec_fn=end_with_parent)
        return began

    def check_alive(self):
        if self.process.poll() is not None:
            raise Failed(f"walhouse ended by itself ({self.process.returncode}):\n{tail(self.log)}")

    def ready(self):
        self.check_alive()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def wait_ready(self, seconds=3600):
        deadline = time.monotonic() + seconds
        while not self.ready():
            if time.monotonic() > deadline:
                raise Failed(f"walhouse was not ready within {seconds} s:\n{tail(self.log)}")
            time.sleep(0.02)

    def stop(self):
        self.check_alive()
        self.process.terminate()
        if self.process.wait(timeout=60) != 0:
            raise Failed(f"walhouse stopped with {self.process.returncode}:\n{tail(self.log)}")

    def kill(self):
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def verify(self):
        """Both sides are compared by walhouse itself, value by value; `run` must be alive."""
        done = subprocess.run([WALHOUSE, "verify", "--config", self.config], stdin=subprocess.DEVNULL,
                              capture_output=True, text=True)
        if done.returncode != 0:
            raise Failed(f"walhouse verify: {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")

    def forget(self):
        """Drops its slot and its database."""
        self.kill()
        self.servers.daemons.remove(self)
        self.database.drop_slots(self.name)
        self.servers.clickhouse.ask(f"DROP DATABASE IF EXISTS {self.name} SYNC")
        self.servers.clickhouse.settle()


def stat(pid):
    """Seconds of CPU of a process, those of its children that have ended, and its parent."""
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK, (int(fields[13]) + int(fields[14])) / TICK, int(fields[1])


def postgres_cpu(postmaster):
    """Of the whole cluster: what lives, and what the postmaster has seen the end of. A backend that ends while this looks
    is in neither for a moment; the total only ever rises, so the highest of a few looks is the right one."""

    def look():
        total = 0.0
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with contextlib.suppress(OSError):
                    used, _, parent = stat(entry)
                    total += used if parent == postmaster else 0
        return total + sum(stat(postmaster)[:2])

    looks = []
    for _ in range(3):
        looks.append(look())
        time.sleep(0.02)
    return max(looks)


def machine_cpu():
    """Seconds in which any processor was busy, whoever kept it so."""
    with open("/proc/stat", encoding="utf-8") as file:
        user, nice, system, _idle, _wait, irq, softirq, *_ = map(int, file.readline().split()[1:])
    return (user + nice + system + irq + softirq) / TICK


def peak_rss(pid):
    """In bytes. Not `ru_maxrss`, which a child inherits from whoever started it."""
    with open(f"/proc/{pid}/status", encoding="utf-8") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))


class Meter:
    """CPU seconds between two moments, by who used them; `other` is what nobody of ours did, and `others_share` how much of
    all processors that was."""

    def __init__(self, servers):
        self.servers = servers
        self.before = self.read()

    def read(self):
        own = os.times()
        return {
            "window": time.perf_counter(),
            "postgres": postgres_cpu(self.servers.postmaster),
            "clickhouse": stat(self.servers.clickhouse_pid)[0],
            "suite": own.user + own.system,
            "machine": machine_cpu(),
        }

    def stop(self, client=0.0, name="client"):
        """`client` is what the process under test used: a child of ours, which nobody else counts."""
        used = {key: value - self.before[key] for key, value in self.read().items()}
        used[name] = client
        window, machine = used.pop("window"), used.pop("machine")
        used["other"] = max(0.0, machine - sum(used.values()))
        used["others_share"] = used["other"] / (window * os.cpu_count())
        return used
