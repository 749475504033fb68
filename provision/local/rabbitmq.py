"""RabbitMQ as the broker of the local target: an installed server, run as a node of its own on loopback."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from provision.errors import ProvisionError
from provision.home import LabHome

USER = VHOST = "airflow"
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


def render_configuration(port: int, password: str) -> str:
    """Return the configuration: loopback, and one user with one virtual host instead of guest, made at the first start."""
    return (
        "\n".join(
            [
                f"listeners.tcp.1 = 127.0.0.1:{port}",
                f"default_user = {USER}",
                f"default_pass = {password}",
                f"default_vhost = {VHOST}",
                "log.console = true",
                "log.file = false",
                # Below 500 MB of free disk a node would stop taking messages; a lab needs little.
                "disk_free_limit.absolute = 50MB",
            ]
        )
        + "\n"
    )


def environment(home: LabHome, distribution_port: int) -> dict[str, str]:
    """Return the variables of the node: its name, folders and ports; nothing listens beyond loopback."""
    folder = data_folder(home)
    name = f"lab-{hashlib.sha256(str(home.root).encode()).hexdigest()[:8]}@localhost"
    loopback = "{127,0,0,1}"
    return {
        "HOME": str(folder),
        "RABBITMQ_NODENAME": name,
        "RABBITMQ_MNESIA_BASE": str(folder),
        "RABBITMQ_LOG_BASE": str(folder),
        "RABBITMQ_PID_FILE": str(folder / "pid"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
        "RABBITMQ_CONFIG_FILE": str(configuration_file(home)),
        "RABBITMQ_DIST_PORT": str(distribution_port),
        # Erlang's name service would listen on every interface and outlive the node; nothing here looks names up.
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"-start_epmd false -erl_epmd_port {distribution_port} "
        f"-kernel inet_dist_use_interface {loopback}",
    }


def url(port: int, password: str) -> str:
    """Return the broker's address as Celery reads it."""
    return f"amqp://{USER}:{password}@127.0.0.1:{port}/{VHOST}"
