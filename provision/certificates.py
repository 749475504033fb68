"""Certificates of a private authority, for networks whose proxies or mirrors show their own: `LAB_CA_BUNDLE`, or --ca-bundle."""

from __future__ import annotations

import os
from pathlib import Path

from provision.errors import UsageError

BUNDLE_VARIABLE = "LAB_CA_BUNDLE"


def bundle() -> Path | None:
    """Return the file with the certificates, None if nobody named one; raises UsageError if it holds none."""
    named = os.environ.get(BUNDLE_VARIABLE)
    if not named:
        return None
    path = Path(named).expanduser().resolve()
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or 'it is not text'}.", "name a file in PEM format"
        ) from error
    if "-----BEGIN CERTIFICATE-----" not in text:
        raise UsageError(f"{path} holds no certificate.", "name a file in PEM format, with -----BEGIN CERTIFICATE----- in it")
    return path


def variables() -> dict[str, str]:
    """Return the environment with which uv and pip trust the named certificates; empty if nobody named any."""
    path = bundle()
    return {} if path is None else dict.fromkeys(("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE"), str(path))
