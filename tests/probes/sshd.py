"""An OpenSSH server of this run's own on loopback: own host key, own user key, own port, own configuration."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cli.system_packages import TESTS
from tests.timing import PATIENCE_S

HOST = "highwater-test-host"
"""What the client's configuration calls the server; no other program knows the name."""
BEHIND = "highwater-test-host-behind"
"""The same one, reached by a jump over it."""


class Sshd:
    """The server, and the client's configuration that reaches it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        server = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
        if server is None or shutil.which("ssh") is None or sys.platform == "win32":
            pytest.skip(f"needs OpenSSH's server; on Debian the package {TESTS['sshd']}")
        folder.chmod(0o700)
        for name in ("host_key", "user_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True, timeout=200)
        shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._server = server
        self.config = folder / "ssh_config"
        self._configure()
        self.start()

    def _configure(self) -> None:
        (self.folder / "sshd_config").write_text(
            f"""
Port {self.port}
ListenAddress 127.0.0.1
HostKey {self.folder}/host_key
AuthorizedKeysFile {self.folder}/authorized_keys
PidFile none
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
"""
        )
        key = (self.folder / "host_key.pub").read_text()
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {key}")
        self.config.write_text(
            f"""
Host stranger
  UserKnownHostsFile {self.folder}/nobody_known
Host {BEHIND}
  ProxyJump {HOST}
Host {HOST} {BEHIND} stranger
  HostName 127.0.0.1
  Port {self.port}
  User {getpass.getuser()}
  IdentityFile {self.folder}/user_key
  IdentitiesOnly yes
  IdentityAgent none
  UserKnownHostsFile {self.folder}/known_hosts
  GlobalKnownHostsFile none
  StrictHostKeyChecking yes
Host unknown
  HostName {HOST}.invalid
"""
        )

    def start(self) -> None:
        """Begin to listen."""
        Path("/run/sshd").mkdir(exist_ok=True) if os.geteuid() == 0 else None
        log = self.folder / "sshd.log"
        command = [self._server, "-D", "-f", self.folder / "sshd_config", "-E", log]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            if self.process.poll() is not None:
                pytest.skip(f"sshd does not start here: {log.read_text()[-300:]}")
            time.sleep(0.05)
        pytest.fail("sshd does not listen")

    def drop(self) -> None:
        """Cut every connection, as a machine that goes down does: the server's processes for them are killed."""
        for child in psutil.Process(self.process.pid).children(recursive=True):
            if child.name().startswith("sshd"):
                child.kill()

    def close(self) -> None:
        """End the server and its connections."""
        self.drop()
        self.process.terminate()
        self.process.wait(10)
