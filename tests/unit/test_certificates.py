"""Certificates of a private authority: named, checked, and handed to what downloads."""

from __future__ import annotations

import pytest

from provision import certificates
from provision.errors import UsageError

PEM = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


def test_without_a_name_nothing_is_changed(monkeypatch):
    monkeypatch.delenv(certificates.BUNDLE_VARIABLE, raising=False)
    assert certificates.bundle() is None
    assert certificates.variables() == {}


def test_a_named_file_is_handed_to_uv_and_pip(monkeypatch, tmp_path):
    file = tmp_path / "ca.pem"
    file.write_text(PEM)
    monkeypatch.setenv(certificates.BUNDLE_VARIABLE, str(file))
    assert certificates.variables() == {"SSL_CERT_FILE": str(file), "PIP_CERT": str(file), "REQUESTS_CA_BUNDLE": str(file)}


@pytest.mark.parametrize(
    ("content", "words"), [(None, "cannot be read: No such file"), ("hello", "holds no certificate"), (b"\xff\xfe", "not text")]
)
def test_a_file_that_is_none_is_refused_with_its_name(monkeypatch, tmp_path, content, words):
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.setenv(certificates.BUNDLE_VARIABLE, str(file))
    with pytest.raises(UsageError, match=words) as refused:
        certificates.bundle()
    assert str(file) in refused.value.message
    assert "PEM" in refused.value.hint
