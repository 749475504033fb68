"""RabbitMQ as the broker of the local target: an installed server, run as a node of its own on loopback."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from pathlib import Path

from provision.airflow import render_environment_file
from provision.errors import ProvisionError
from provision.home import LabHome

USER = VHOST = "airflow"
# Longer than any task may take.
ACKNOWLEDGED_WITHIN_S = 86400
# Distributions wrap the command so that it changes to a system user; the script behind the wrapper runs as anybody.
SCRIPTS = (
    "/usr/lib/rabbitmq/bin/rabbitmq-server",
    "/opt/homebrew/opt/rabbitmq/sbin/rabbitmq-server",
    "/usr/local/opt/rabbitmq/sbin/rabbitmq-server",
)


def binary() -> str:
    """Return the server's start script; raises ProvisionError that says how to get RabbitMQ."""
    found = next((script for script in SCRIPTS if Path(script).exists()), None) or shutil.which("rabbitmq-server")
    if found is None:
        raise ProvisionError(
            "RabbitMQ is not installed on this machine.",
            "apt install rabbitmq-server (Debian, Ubuntu) or brew install rabbitmq (macOS); or leave out --broker, which uses Redis",
        )
    return found


def data_folder(home: LabHome) -> Path:
    """Return where the node keeps its messages, its cookie and its list of plugins."""
    return home.databases / "rabbitmq"


def configuration_file(home: LabHome) -> Path:
    """Return the node's configuration file."""
    return home.state / "rabbitmq.conf"


def environment_file(home: LabHome) -> Path:
    """Return the file with the variables that make the node a lab's own."""
    return home.state / "rabbitmq.env"


def server_command() -> list[str]:
    """Return the command line of the server; it has no passwords in it."""
    return [binary()]


def files(home: LabHome, port: int, distribution_port: int, password: str) -> dict[Path, str]:
    """Return the text of every file that the node is started with, by path."""
    return {
        configuration_file(home): render_configuration("127.0.0.1", port, made_once(password)),
        environment_file(home): render_environment_file(environment(home, distribution_port)),
        data_folder(home) / "enabled_plugins": "[].\n",
        # Who knows the cookie may run code in the node; the one that Erlang would make up itself can be guessed.
        data_folder(home) / ".erlang.cookie": hashlib.sha256(f"cookie {password}".encode()).hexdigest(),
    }


def made_once(password: str) -> list[str]:
    """Return the lines of the configuration that make one user with one virtual host instead of guest, at the first start."""
    return [f"default_user = {USER}", f"default_pass = {password}", f"default_vhost = {VHOST}"]


def render_definitions(password: str) -> str:
    """Return the same user and virtual host as a file that is loaded at every start, so that the password is always this one."""
    # The salt is the same each time, as the file must be; the password is random.
    salt = hashlib.sha256(f"salt {password}".encode()).digest()[:4]
    digest = base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()
    user = {"name": USER, "password_hash": digest, "hashing_algorithm": "rabbit_password_hashing_sha256", "tags": []}
    rights = {"user": USER, "vhost": VHOST, "configure": ".*", "write": ".*", "read": ".*"}
    return json.dumps({"users": [user], "vhosts": [{"name": VHOST}], "permissions": [rights]}) + "\n"


def render_configuration(address: str, port: int, user: list[str]) -> str:
    """Return the configuration of a node that listens on one address; `user` are the lines that tell who may connect."""
    lines = [
        f"listeners.tcp.1 = {address}:{port}",
        *user,
        # A task is acknowledged when it has ended. After 30 minutes, the default, RabbitMQ would give it to another
        # worker while the first one still runs it: as long as visibility_timeout in provision/variants.py.
        f"consumer_timeout = {ACKNOWLEDGED_WITHIN_S * 1000}",
        # Below this much free disk a node takes no more messages; a lab needs little.
        "disk_free_limit.absolute = 50MB",
        "log.console = true",
        "log.console.use_colors = off",
        "log.file = false",
        # Otherwise every question to the workers is a new connection in the log.
        "log.connection.level = error",
    ]
    return "\n".join(lines) + "\n"


def environment(home: LabHome, distribution_port: int) -> dict[str, str]:
    """Return the variables of the node: its name, folders and ports; nothing listens beyond loopback."""
    folder = data_folder(home)
    loopback = "-kernel inet_dist_use_interface {127,0,0,1}"
    name = f"lab-{hashlib.sha256(str(home.root).encode()).hexdigest()[:8]}@localhost"
    return {
        "HOME": str(folder),
        "RABBITMQ_NODENAME": name,
        "RABBITMQ_USE_LONGNAME": "false",
        "RABBITMQ_MNESIA_BASE": str(folder),
        "RABBITMQ_LOG_BASE": str(folder),
        "RABBITMQ_PID_FILE": str(folder / "pid"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
        "RABBITMQ_CONFIG_FILE": str(configuration_file(home)),
        # Three more places to configure a node: what an administrator wrote into /etc/rabbitmq is not for this one.
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        "RABBITMQ_CONFIG_FILES": str(folder / "none" / "*.conf"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "none.config"),
        "RABBITMQ_DIST_PORT": str(distribution_port),
        # The start script replaces itself by the server instead of waiting beside it: who kills the process of the
        # service kills the node.
        "RUNNING_UNDER_SYSTEMD": "true",
        # Erlang's name service, epmd, would listen on every interface and outlive the node. A node that has its name
        # and port from its command line does without (rabbit_prelaunch_dist.erl and erl_epmd.erl, RabbitMQ 3.10.8 and
        # Erlang 25); ERL_FLAGS reach the helper that RabbitMQ starts every minute to keep epmd alive, too. The port of
        # epmd is one where nobody answers, so that the epmd of another RabbitMQ never hears of this node.
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"-sname {name} -erl_epmd_port {distribution_port} {loopback}",
        "ERL_FLAGS": f"-start_epmd false {loopback}",
        "ERL_EPMD_PORT": "1",
        # That helper fails each time, which is meant, and leaves no file of its memory behind.
        "ERL_CRASH_DUMP_SECONDS": "0",
    }


def url(port: int, password: str) -> str:
    """Return the broker's address as Celery reads it."""
    return f"amqp://{USER}:{password}@127.0.0.1:{port}/{VHOST}"
