"""Certificate files: what is made of them, and what is said about those that are no good."""

import os
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from rolemesh.config.dropins import ConfigSource
from rolemesh.config.load import load_gateway, load_node
from rolemesh.config.settings import ClientTls, ServerTls
from rolemesh.config.tls import client_context, find_faults, server_context
from rolemesh.config.x509 import read_validity
from rolemesh.errors import ConfigError
from tests.config.conftest import Write
from tests.lab.certificates import Authority, Certificate


@pytest.fixture(scope="module")
def certificate(authority: Authority) -> Certificate:
    return authority.sign()


def der(certificate: Certificate) -> bytes:
    return ssl.PEM_cert_to_DER_cert(certificate.cert_file.read_text())


# --- contexts ---------------------------------------------------------------------------------


def test_both_sides_speak_tls_1_2_or_newer(authority: Authority, certificate: Certificate) -> None:
    server = server_context(
        ServerTls(cert_file=certificate.cert_file, key_file=certificate.key_file)
    )
    client = client_context(ClientTls(ca_file=authority.ca_file))
    assert {server.minimum_version, client.minimum_version} == {ssl.TLSVersion.TLSv1_2}
    assert (server.verify_mode, client.verify_mode) == (ssl.CERT_NONE, ssl.CERT_REQUIRED)
    assert client.check_hostname


def test_client_certificates_are_required_where_their_authority_is_named(
    authority: Authority, certificate: Certificate
) -> None:
    settings = ServerTls(
        cert_file=certificate.cert_file,
        key_file=certificate.key_file,
        client_ca_file=authority.ca_file,
    )
    assert server_context(settings).verify_mode is ssl.CERT_REQUIRED


def test_the_systems_authorities_are_trusted_unless_a_file_says_others(
    authority: Authority,
) -> None:
    own = client_context(ClientTls(ca_file=authority.ca_file))
    (trusted,) = own.get_ca_certs(binary_form=True)
    assert trusted == ssl.PEM_cert_to_DER_cert(authority.ca_file.read_text())
    systems = ssl.create_default_context()
    assert client_context(ClientTls()).cert_store_stats() == systems.cert_store_stats()


# --- what is wrong with the files -------------------------------------------------------------


def faults(**files: Any) -> dict[str, str]:
    kind = ClientTls if "ca_file" in files else ServerTls
    return {fault.key: fault.message for fault in find_faults(kind(**files))}


def test_good_files_have_no_faults(authority: Authority, certificate: Certificate) -> None:
    own = {"cert_file": certificate.cert_file, "key_file": certificate.key_file}
    assert faults(**own, client_ca_file=authority.ca_file) == {}
    assert faults(**own, ca_file=authority.ca_file) == {}
    assert faults(ca_file=None) == {}


def test_every_file_is_looked_at(certificate: Certificate, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    os.mkfifo(empty)
    assert faults(
        cert_file=tmp_path / "none", key_file=certificate.cert_file, client_ca_file=empty
    ) == {
        "cert_file": f"{tmp_path}/none cannot be read: No such file or directory",
        "key_file": f"{certificate.cert_file} holds no private key in PEM form (BEGIN PRIVATE KEY)",
        "client_ca_file": f"{empty} holds no certificate in PEM form (BEGIN CERTIFICATE)",
    }


def test_a_key_of_another_certificate_is_found(
    authority: Authority, certificate: Certificate
) -> None:
    other = authority.sign("other").key_file
    assert faults(cert_file=certificate.cert_file, key_file=other) == {
        "key_file": f"{other} is not the key of the certificate in {certificate.cert_file}"
    }


def test_a_key_with_a_passphrase_is_refused_with_the_remedy(
    certificate: Certificate, tmp_path: Path
) -> None:
    locked = tmp_path / "locked.key"
    locked.write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\n")
    (message,) = faults(cert_file=certificate.cert_file, key_file=locked).values()
    assert message.endswith(f"openssl pkey -in {locked} -out {locked}.plain")


def test_a_certificate_in_binary_form_is_refused_with_the_remedy(
    certificate: Certificate, tmp_path: Path
) -> None:
    binary = tmp_path / "a.crt"
    binary.write_bytes(der(certificate))
    (message,) = faults(cert_file=binary, key_file=certificate.key_file).values()
    assert message.endswith(f"convert it: openssl x509 -inform der -in {binary} -out {binary}.pem")


@pytest.mark.parametrize("name", ["cert_file", "ca_file"])
def test_what_only_looks_like_a_certificate_is_refused(
    certificate: Certificate, tmp_path: Path, name: str
) -> None:
    broken = tmp_path / "broken.pem"
    broken.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    own = {"cert_file": certificate.cert_file, "key_file": certificate.key_file}
    (found,) = faults(**{**own, name: broken})
    assert found == name


def test_a_certificate_that_has_expired_is_worth_a_warning(authority: Authority) -> None:
    old = authority.sign("old", days=-1)
    (fault,) = find_faults(ServerTls(cert_file=old.cert_file, key_file=old.key_file))
    assert fault.is_warning
    assert fault.message.startswith(f"{old.cert_file} expired on 20")


def test_a_key_that_anyone_can_read_is_worth_a_warning(
    certificate: Certificate, open_directory: Path
) -> None:
    key = open_directory / "open.key"
    key.write_bytes(certificate.key_file.read_bytes())
    key.chmod(0o644)
    (fault,) = find_faults(ServerTls(cert_file=certificate.cert_file, key_file=key))
    assert (fault.key, fault.is_warning) == ("key_file", True)
    assert fault.message.endswith(f"run: chmod o-r {key}")


# --- validity ---------------------------------------------------------------------------------


def test_the_validity_of_a_certificate_is_read(certificate: Certificate) -> None:
    validity = read_validity(der(certificate))
    assert validity.end - validity.begin == timedelta(days=30)
    assert abs(datetime.now(UTC) - validity.begin) < timedelta(hours=1)


def test_whatever_is_no_certificate_is_a_value_error(certificate: Certificate) -> None:
    good = der(certificate)
    for cut in range(120):
        with pytest.raises(ValueError):  # noqa: PT011  # whichever comes first
            read_validity(good[:cut])
    for position in range(60):
        changed = bytearray(good)
        changed[position] ^= 0xFF
        try:
            read_validity(bytes(changed))
        except ValueError:
            continue


# --- in a configuration -----------------------------------------------------------------------


def test_every_place_of_both_configurations_is_looked_at(
    write: Write, tmp_path: Path, certificate: Certificate
) -> None:
    tls = f"{{cert_file: /none, key_file: {certificate.key_file}}}"
    a = write(
        "g/a.yaml",
        f"""
        listen:
          tls: {tls}
        nodes:
          tls: {tls}
        models:
          planner: {{type: proxy, proxy_url: "https://h", tls: {tls}}}
        """,
    )
    with pytest.raises(ConfigError) as refused:
        load_gateway(ConfigSource(program="gateway", config_dir=tmp_path / "g"), {})
    none = "/none cannot be read: No such file or directory"
    assert list(map(str, refused.value.problems)) == [
        f"{a}:2: listen.tls.cert_file: {none}",
        f"{a}:4: nodes.tls.cert_file: {none}",
        f"{a}:6: models.planner.tls.cert_file: {none}",
    ]
    b = write(
        "n/b.yaml",
        f"""
        listen:
          tls: {tls}
        gateways:
          "https://h":
            tls: {tls}
        """,
    )
    source = ConfigSource(program="node", config_dir=tmp_path / "n")
    with pytest.raises(ConfigError) as refused:
        load_node(source, {})
    assert list(map(str, refused.value.problems)) == [
        f"{b}:2: listen.tls.cert_file: {none}",
        f'{b}:5: gateways."https://h".tls.cert_file: {none}',
    ]
    assert load_node(source, {}, reads_keys=False).settings.listen.tls is not None


def test_where_nothing_is_said_in_tls_its_settings_have_no_effect(
    write: Write, tmp_path: Path, authority: Authority
) -> None:
    tls = f"{{ca_file: {authority.ca_file}}}"
    write("g/a.yaml", f"models: {{p: {{type: proxy, proxy_url: 'http://h', tls: {tls}}}}}")
    write("n/b.yaml", f"gateways: [{{url: 'http://h', tls: {tls}}}]")
    for warnings in (
        load_gateway(ConfigSource(program="gateway", config_dir=tmp_path / "g"), {}).warnings,
        load_node(ConfigSource(program="node", config_dir=tmp_path / "n"), {}).warnings,
    ):
        (warning,) = warnings
        assert str(warning).endswith(".tls: no effect: the URL begins with http://")
