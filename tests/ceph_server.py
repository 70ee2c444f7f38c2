"""A real S3 server for tests: Ceph's object gateway over a monitor and one store in memory.

Debian's packages `radosgw ceph-mon ceph-osd` bring the programs. Nothing is left behind but log lines.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = (
    "radosgw", "radosgw-admin", "ceph-mon", "ceph-osd", "ceph", "ceph-authtool", "monmaptool", "setpriv",
)  # fmt: skip
ACCESS_KEY = "PV3DTESTACCESSKEY"
SECRET_KEY = "pv3d-test-secret-of-no-worth"
OTHER_KEY = "PV3DTESTOTHERKEY"                # a second user, with the same secret and rights to nothing
KMS_KEY = "pv3d-test-key"
START_S = 90.0

_CONF = """\
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{mon2},v1:127.0.0.1:{mon1}]
mon initial members = a
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
keyring = {dir}/keyring
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon data avail crit = 1
mon max pg per osd = 1000
osd objectstore = memstore
memstore device bytes = 4294967296
run dir = {dir}
log file = {dir}/$name.log
admin socket = {dir}/$name.asok
mon data = {dir}/mon
osd data = {dir}/osd
mon cluster log file = {dir}/cluster.log
crash dir = {dir}/crash

[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:{http}
rgw thread pool size = 32
rgw crypt require ssl = false
rgw crypt s3 kms backend = testing
rgw crypt s3 kms encryption keys = {kms}=YmluCmJvb3N0CmJvb3N0LWJ1aWxkCmNlcGguY29uZgo=
"""


@dataclass(frozen=True)
class S3Server:
    """Where the server listens, and the keys of its users."""

    endpoint: str
    access_key: str = ACCESS_KEY
    secret_key: str = SECRET_KEY
    other_key: str = OTHER_KEY
    kms_key: str = KMS_KEY


def missing() -> str:
    """The first program that is not installed, "" when all are."""
    return next((name for name in PROGRAMS if shutil.which(name) is None), "")


@contextlib.contextmanager
def server() -> Iterator[S3Server]:
    """A server that runs while the context lasts. Raises RuntimeError when it does not come up."""
    # Unix sockets must have short paths, which pytest's folders have not.
    folder = Path(tempfile.mkdtemp(prefix="rgw", dir="/tmp"))
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        yield _start(folder, daemons)
    finally:
        for daemon in reversed(daemons):
            daemon.kill()  # what it holds is in memory and of no use any more
            daemon.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _start(folder: Path, daemons: list[subprocess.Popen[bytes]]) -> S3Server:
    http, mon1, mon2 = _free_ports(3)
    fsid = str(uuid.uuid4())
    conf = _CONF.format(fsid=fsid, dir=folder, http=http, mon1=mon1, mon2=mon2, kms=KMS_KEY)
    (folder / "ceph.conf").write_text(conf)
    (folder / "mon").mkdir()
    (folder / "osd").mkdir()
    keyring, monmap = str(folder / "keyring"), str(folder / "monmap")

    def run(program: str, *arguments: str) -> str:
        command = [program, "-c", str(folder / "ceph.conf"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=START_S)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()[-500:]}")
        return done.stdout

    def serve(program: str, *arguments: str) -> None:
        # It dies with the tests, however they end.
        bound = ["setpriv", "--pdeathsig", "KILL"]
        command = [*bound, program, "-f", "-c", str(folder / "ceph.conf"), *arguments]
        quiet = subprocess.DEVNULL
        daemons.append(subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet))

    everything = ("--cap", "mon", "allow *", "--cap", "osd", "allow *")
    run("ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
    run("ceph-authtool", keyring, "--gen-key", "-n", "client.admin", *everything, "--cap", "mgr", "allow *")
    run("ceph-authtool", keyring, "--gen-key", "-n", "osd.0", *everything)
    run("ceph-authtool", keyring, "--gen-key", "-n", "client.rgw", *everything)
    address = f"[v2:127.0.0.1:{mon2},v1:127.0.0.1:{mon1}]"
    run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, monmap)
    run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)
    serve("ceph-mon", "-i", "a")
    run("ceph", "--connect-timeout", "30", "auth", "import", "-i", keyring)
    osd = str(uuid.uuid4())
    run("ceph", "osd", "new", osd)
    run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
    serve("ceph-osd", "-i", "0")
    serve("radosgw", "-n", "client.rgw")
    found = S3Server(f"http://127.0.0.1:{http}")
    _wait_for(found.endpoint)
    for name, key in (("test", ACCESS_KEY), ("other", OTHER_KEY)):
        keys = (f"--access-key={key}", f"--secret-key={SECRET_KEY}")
        who = (f"--uid={name}", f"--display-name={name}")
        made = run("radosgw-admin", "-n", "client.rgw", "user", "create", *who, *keys)
        assert json.loads(made)["user_id"] == name
    return found


def _wait_for(endpoint: str) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            urllib.request.urlopen(endpoint, timeout=5).close()
            return
        except (urllib.error.URLError, OSError) as error:
            if time.monotonic() > deadline:
                raise RuntimeError(f"radosgw does not answer at {endpoint}: {error}") from None
            time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
