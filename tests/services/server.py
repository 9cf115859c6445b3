#!/usr/bin/env python3
"""Runs one real server, ClickHouse, PostgreSQL or an SQS, for exactly as long as standard input stays open.

    server.py clickhouse --dir DIR --http-port N [--tcp-port N] [--config-file F] [--memory BYTES]
    server.py postgres --version 14|15|16|17|18 --dir DIR --port N [--setting k=v]... [--hba LINE]...
    server.py sqs --dir DIR --port N

Prints `ready` on standard output when the server answers. Whoever holds the other end of the pipe owns the server: when
that process ends, however it ends, so does the server, and with --remove its directory too. An existing DIR is started
again as it is, which after a SIGKILL is a crash recovery.

ClickHouse runs inside this very process, so a SIGKILL here is a crash of ClickHouse. PostgreSQL's postmaster is a child;
its pid is the first line of DIR/postmaster.pid. This script exits 1 when the server ends by itself.
"""

import argparse
import ctypes
import glob
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

SERVICES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "target", "services")
START_SECONDS = 60


def say(message):
    print(f"server.py: {message}", file=sys.stderr, flush=True)


def announce():
    try:
        print("ready", flush=True)
    except BrokenPipeError:
        pass  # Nobody waits for it any more; the end of standard input tells the rest.


def remove(directory):
    """Removes the server's directory and the log beside it, and the directory around them when nothing else is left."""
    shutil.rmtree(directory, ignore_errors=True)
    try:
        if os.path.exists(directory + ".log"):
            os.remove(directory + ".log")
        os.rmdir(os.path.dirname(os.path.abspath(directory)))
    except OSError:
        pass


# ClickHouse: `clickhouse local` as a library. It can listen, and its last query ends when standard input does.


def clickhouse(options):
    library = os.path.join(SERVICES, "libchdb.so")
    if not os.path.exists(library):
        sys.exit(f"no {os.path.normpath(library)}: run tests/services/install first")
    notice_failed_writes()
    os.makedirs(options.dir, exist_ok=True)
    listen = "SYSTEM START LISTEN HTTP; "
    arguments = ["clickhouse", "--path", options.dir, "--listen_host", "127.0.0.1"]
    arguments += ["--http_port", str(options.http_port)]
    if options.tcp_port:
        arguments += ["--tcp_port", str(options.tcp_port)]
        listen += "SYSTEM START LISTEN TCP; "
    if options.config_file:
        arguments += ["--config-file", options.config_file]
    arguments += ["--query", listen + "SELECT count() FROM file('/dev/stdin', 'LineAsString') FORMAT Null"]
    arguments += ["--", f"--mark_cache_size={256 << 20}", f"--uncompressed_cache_size={64 << 20}"]
    if options.memory:
        arguments += [f"--max_server_memory_usage={options.memory}"]

    threading.Thread(target=announce_clickhouse, args=(options.http_port,), daemon=True).start()
    argv = (ctypes.c_char_p * (len(arguments) + 1))(*[argument.encode() for argument in arguments], None)
    function = ctypes.CDLL(library).chdb_query_cmdline
    function.restype = ctypes.c_void_p
    function(len(arguments), argv)
    if options.remove:
        remove(options.dir)
    # Straight out: the library's own threads need not be waited for.
    sys.stderr.flush()
    os._exit(0 if options.ready else 1)


def notice_failed_writes():
    """Starts this very process again, behind failed_writes.c, which says why."""
    source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "failed_writes.c")
    library = os.path.abspath(os.path.join(SERVICES, "failed_writes.so"))
    preloaded = os.environ.get("LD_PRELOAD", "").split(":")
    if library in preloaded:
        return
    if not os.path.exists(library) or os.path.getmtime(library) < os.path.getmtime(source):
        partial = f"{library}.{os.getpid()}"
        subprocess.run(["cc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", partial, source, "-ldl"], check=True)
        os.rename(partial, library)
    os.environ["LD_PRELOAD"] = ":".join([library, *filter(None, preloaded)])
    os.execv(sys.executable, [sys.executable, *sys.argv])


def announce_clickhouse(port):
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).read()
            OPTIONS.ready = True
            return announce()
        except OSError:
            time.sleep(0.03)
    say(f"ClickHouse did not answer on port {port} within {START_SECONDS} s")
    os._exit(1)


# PostgreSQL: a child process, which must not be root.

DEFAULTS = {
    "listen_addresses": "127.0.0.1",
    "wal_level": "logical",
    "max_replication_slots": "50",
    "max_wal_senders": "50",
    "max_connections": "200",
    "fsync": "off",
    "max_wal_size": "2GB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %d ",
}


class PostgresFiles:
    """The binaries of one version, and the account that they run under: ours, unless we are root."""

    def __init__(self, version):
        self.account = None
        if os.geteuid() == 0:
            try:
                self.account = pwd.getpwnam("postgres")
            except KeyError:
                subprocess.run(["useradd", "--system", "--no-create-home", "--shell", "/bin/false", "postgres"], check=True)
                self.account = pwd.getpwnam("postgres")
        self.bin = self.reachable(find_binaries(version))

    def become(self):
        """In the child: gives up root, and asks for an immediate shutdown should this script be killed."""
        if self.account:
            os.setgroups([])
            os.setgid(self.account.pw_gid)
            os.setuid(self.account.pw_uid)
        os.umask(0o077)
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGQUIT)

    def own(self, path):
        if self.account:
            os.chown(path, self.account.pw_uid, self.account.pw_gid)

    def can_reach(self, path):
        return not self.account or subprocess.run(["test", "-x", path], preexec_fn=self.become).returncode == 0

    def reachable(self, binaries):
        """A clone below /root is closed to other accounts: such binaries are used from a copy outside of it."""
        if self.can_reach(os.path.join(binaries, "postgres")):
            return binaries
        native = os.path.realpath(os.path.join(binaries, ".."))
        copy = f"/var/tmp/walhouse-postgres-{os.stat(native).st_ino}"
        if not os.path.exists(copy):
            partial = f"{copy}.{os.getpid()}"
            shutil.copytree(native, partial, symlinks=True)
            os.chmod(partial, 0o755)
            try:
                os.rename(partial, copy)
            except OSError:  # Another server made the same copy first.
                shutil.rmtree(partial)
        return os.path.join(copy, "bin")


def find_binaries(version):
    """npm's build of the wanted version, or the distribution's; 15 stands for whatever the distribution has."""
    candidates = [os.path.join(SERVICES, f"postgres-{version}", "bin"), f"/usr/lib/postgresql/{version}/bin"]
    if version == "15":
        installed = glob.glob("/usr/lib/postgresql/*/bin")
        candidates += sorted(installed, key=lambda path: int(path.split("/")[4]), reverse=True)
    for candidate in candidates:
        if os.path.exists(os.path.join(candidate, "postgres")):
            return candidate
    sys.exit(f"no PostgreSQL {version} on this machine: run tests/services/install first")


def postgres(options):
    files = PostgresFiles(options.version)
    directory = os.path.abspath(options.dir)
    if not os.path.exists(os.path.join(directory, "PG_VERSION")):
        os.makedirs(directory, mode=0o700, exist_ok=True)
        files.own(directory)
        if not files.can_reach(os.path.dirname(directory)):
            sys.exit(f"{directory} is closed to the account '{files.account.pw_name}', and PostgreSQL refuses to run as root")
        initdb = [os.path.join(files.bin, "initdb"), "-D", directory, "-U", "postgres", "-A", "trust"]
        initdb += ["-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions"]
        done = subprocess.run(initdb, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              cwd="/", preexec_fn=files.become)
        if done.returncode != 0:
            sys.exit("initdb failed: " + done.stdout.decode(errors="replace"))
    configure(options, files, directory)

    server = start_postgres(files, directory)
    announce()
    threading.Thread(target=exit_with_server, args=(server,), daemon=True).start()
    while os.read(0, 4096):
        pass
    OPTIONS.stopping = True
    server.send_signal(signal.SIGQUIT)
    try:
        server.wait(timeout=20)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
    if options.remove:
        remove(directory)


def configure(options, files, directory):
    """Both files are written anew at each start, so that a restart may change a setting; ALTER SYSTEM still adds to them."""
    settings = {**DEFAULTS, "port": str(options.port), "unix_socket_directories": directory}
    settings.update(setting.split("=", 1) for setting in options.setting)
    quoted = {key: value.replace("'", "''") for key, value in settings.items()}
    trust = [f"{kind} {who} all {address} trust" for who in ("all", "replication")
             for kind, address in (("local", ""), ("host", "127.0.0.1/32"), ("host", "::1/128"))]
    for name, lines in {
        "postgresql.conf": [f"{key} = '{value}'" for key, value in quoted.items()],
        "pg_hba.conf": options.hba + trust,
    }.items():
        path = os.path.join(directory, name)
        with open(path, "w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
        files.own(path)


def start_postgres(files, directory):
    """Starts the postmaster and waits until it takes connections; a killed one's last children may stand in its way."""
    pid_file = os.path.join(directory, "postmaster.pid")
    crashed = os.path.exists(pid_file)
    started = time.monotonic()
    while True:
        server = subprocess.Popen([os.path.join(files.bin, "postgres"), "-D", directory], stdin=subprocess.DEVNULL,
                                  stdout=sys.stderr, cwd="/", preexec_fn=files.become)
        while server.poll() is None:
            lines = read_lines(pid_file)
            if len(lines) > 7 and lines[0] == str(server.pid) and lines[7].strip() == "ready":
                return server
            if time.monotonic() > started + START_SECONDS:
                server.send_signal(signal.SIGQUIT)
                server.wait()
                sys.exit(f"PostgreSQL was not ready within {START_SECONDS} s")
            time.sleep(0.02)
        if not crashed or time.monotonic() > started + 15:
            sys.exit(f"PostgreSQL exited with {server.returncode} while starting")
        time.sleep(0.2)


def exit_with_server(server):
    code = server.wait()
    if not getattr(OPTIONS, "stopping", False):
        say(f"the server ended by itself ({code})")
        os._exit(1)


# SQS: an emulator that speaks its protocol, and keeps everything in memory.


def sqs(options):
    program = os.path.join(SERVICES, "node_modules", "fauxqs", "dist", "server.js")
    if not os.path.exists(program):
        sys.exit(f"no {os.path.normpath(program)}: run tests/services/install first")
    os.makedirs(options.dir, exist_ok=True)
    environment = {**os.environ, "FAUXQS_PORT": str(options.port), "FAUXQS_HOST": "127.0.0.1", "FAUXQS_LOGGER": "false"}
    server = subprocess.Popen(["node", program], stdin=subprocess.DEVNULL, stdout=sys.stderr, env=environment,
                              cwd=options.dir)
    threading.Thread(target=exit_with_server, args=(server,), daemon=True).start()
    started = time.monotonic()
    while not answers(options.port):
        if time.monotonic() > started + START_SECONDS:
            server.kill()
            sys.exit(f"SQS was not ready within {START_SECONDS} s")
        time.sleep(0.02)
    announce()
    sys.stdin.buffer.read()
    options.stopping = True
    server.kill()
    server.wait()
    if options.remove:
        remove(options.dir)


def answers(port):
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def read_lines(path):
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().split("\n")
    except OSError:
        return []


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind in ("clickhouse", "postgres", "sqs"):
        sub = kinds.add_parser(kind)
        sub.add_argument("--dir", required=True)
        sub.add_argument("--remove", action="store_true", help="remove DIR and DIR.log when standard input closes")
        if kind == "clickhouse":
            sub.add_argument("--http-port", type=int, required=True)
            sub.add_argument("--tcp-port", type=int)
            sub.add_argument("--config-file")
            sub.add_argument("--memory", type=int, help="bytes that the whole server may use")
        else:
            sub.add_argument("--port", type=int, required=True)
        if kind == "postgres":
            sub.add_argument("--version", default="15")
            sub.add_argument("--setting", action="append", default=[], metavar="KEY=VALUE")
            sub.add_argument("--hba", action="append", default=[], metavar="LINE", help="goes before the trusting lines")
    return parser.parse_args(namespace=argparse.Namespace(ready=False))


if __name__ == "__main__":
    # The owner decides when the server ends; a Ctrl-C meant for the owner must not end it before.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    OPTIONS = arguments()
    {"clickhouse": clickhouse, "postgres": postgres, "sqs": sqs}[OPTIONS.kind](OPTIONS)
