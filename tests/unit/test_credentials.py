"""Whatever is wrong with files, keys and dates is said before the first connection, with the path and what to do."""

from __future__ import annotations

import datetime as dt
import os
import ssl
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monitor.defender.credentials import check
from monitor.defender.x509 import validities, validity
from monitor.errors import ConfigInvalid
from monitor.schema import Auth, Defender

if TYPE_CHECKING:
    from pathlib import Path

DAY_S = 86_400
NOW = dt.datetime(2026, 6, 1, 12, tzinfo=dt.UTC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an authority, a certificate and its key, as a device has them."""
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    issue(tmp_path, ca, "cert")
    (tmp_path / "secret").touch(mode=0o600)
    (tmp_path / "secret").write_text("1234\n")
    return tmp_path


def issue(folder: Path, ca: trustme.CA, name: str, **more: Any) -> None:  # noqa: ANN401
    leaf = ca.issue_cert("device.invalid", **more)
    leaf.cert_chain_pems[0].write_to_path(str(folder / f"{name}.pem"))
    (folder / f"{name}.key").touch(mode=0o600)
    leaf.private_key_pem.write_to_path(str(folder / f"{name}.key"))


def signed(folder: Path, name: str, start: dt.datetime, end: dt.datetime) -> None:
    """A self-signed certificate of these dates, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    who = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder(who, who, key.public_key(), 1, start, end)
    basic = x509.BasicConstraints(ca=True, path_length=None)
    made = builder.add_extension(basic, critical=True).sign(key, hashes.SHA256())
    (folder / f"{name}.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / f"{name}.key").touch(mode=0o600)
    (folder / f"{name}.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def defender(folder: Path, **changes: Any) -> Defender:  # noqa: ANN401
    values: dict[str, Any] = {
        "thing": "mything1",
        "endpoint": "localhost",
        "root_ca": str(folder / "ca.pem"),
        "certificate": str(folder / "cert.pem"),
        "private_key": str(folder / "cert.key"),
    }
    return Defender(**(values | changes))


def refusal(settings: Defender, now: dt.datetime = NOW) -> str:
    with pytest.raises(ConfigInvalid) as caught:
        check(settings, now.timestamp())
    return str(caught.value)


def test_what_fits_together_has_nothing_to_be_said_about(folder: Path) -> None:
    assert check(defender(folder), NOW.timestamp()) == []
    assert check(defender(folder, root_ca=""), NOW.timestamp()) == []


@pytest.mark.parametrize("key", ["root_ca", "certificate", "private_key"])
def test_a_file_that_is_not_there_is_named_with_its_key(folder: Path, key: str) -> None:
    assert refusal(defender(folder, **{key: "/nowhere/x.pem"})).startswith(
        f"defender.{key}: /nowhere/x.pem cannot be read: No such file or directory; "
    )
    assert refusal(defender(folder, **{key: str(folder)})).startswith(f"defender.{key}: {folder} is no file; ")


@pytest.mark.parametrize("key", ["certificate", "private_key"])
def test_a_file_that_is_needed_must_be_named(folder: Path, key: str) -> None:
    assert refusal(defender(folder, **{key: ""})).startswith(f"defender.{key}: expected a path, found none; ")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610, 0o644])
def test_a_key_that_others_may_use_is_refused_with_its_mode_and_the_command(folder: Path, mode: int) -> None:
    key = folder / "cert.key"
    key.chmod(mode)
    assert refusal(defender(folder)) == (
        f"defender.private_key: {key} has mode {mode:04o}, others than its owner may use it; chmod 600 {key}"
    )


def test_a_key_of_another_user_is_refused(folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(folder / "cert.key", 12_345, -1)
    assert "belongs to user 12345" in refusal(defender(folder))


def test_a_link_is_judged_by_what_it_leads_to(folder: Path) -> None:
    (folder / "link.key").symlink_to(folder / "cert.key")
    settings = defender(folder, private_key=str(folder / "link.key"))
    assert check(settings, NOW.timestamp()) == []
    (folder / "cert.key").chmod(0o644)
    assert "has mode 0644" in refusal(settings)


def test_a_key_of_another_certificate_is_refused(folder: Path) -> None:
    issue(folder, trustme.CA(), "other")
    settings = defender(folder, private_key=str(folder / "other.key"))
    assert refusal(settings).startswith(
        f"defender.private_key: {folder / 'other.key'} is not the key of {folder / 'cert.pem'}; "
    )


@pytest.mark.parametrize("form", [["pkcs8", "-topk8"], ["ec"]], ids=["pkcs8", "traditional"])
def test_an_encrypted_key_is_refused_and_nobody_is_asked(folder: Path, form: list[str]) -> None:
    locked = folder / "locked.key"
    locked.touch(mode=0o600)
    cipher = ["-v2", "aes256"] if form[0] == "pkcs8" else ["-aes256"]
    command = ["openssl", *form, "-in", str(folder / "cert.key"), *cipher, "-passout", "pass:x", "-out", str(locked)]
    subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    assert "ENCRYPTED" in locked.read_text()
    assert refusal(defender(folder, private_key=str(locked))).startswith(
        f"defender.private_key: {locked} is encrypted; a daemon cannot ask for its password"
    )


def test_what_is_no_pem_is_refused_by_its_own_key(folder: Path) -> None:
    for name in ("root_ca", "certificate", "private_key"):
        path = folder / "noise"
        path.touch(mode=0o600)
        path.write_bytes(bytes(range(256)))
        assert refusal(defender(folder, **{name: str(path)})).startswith(f"defender.{name}: {path}")
        path.write_text("")
        assert refusal(defender(folder, **{name: str(path)})).startswith(f"defender.{name}: {path}")


def test_certificate_and_key_in_each_others_place_are_refused(folder: Path) -> None:
    (folder / "cert.pem").chmod(0o600)
    settings = defender(folder, certificate=str(folder / "cert.key"), private_key=str(folder / "cert.pem"))
    assert refusal(settings).startswith(f"defender.certificate: {folder / 'cert.key'}: there is no certificate in it")


def test_an_expired_certificate_is_refused_with_its_date(folder: Path) -> None:
    signed(folder, "cert", NOW - dt.timedelta(days=400), NOW - dt.timedelta(days=1))
    assert refusal(defender(folder)) == (
        f"defender.certificate: {folder / 'cert.pem'} expired on 2026-05-31, today is 2026-06-01;"
        " get a new one, or set the clock"
    )


def test_a_certificate_of_the_future_is_refused_with_its_date(folder: Path) -> None:
    signed(folder, "cert", NOW + dt.timedelta(days=1), NOW + dt.timedelta(days=400))
    assert "is not valid before 2026-06-02, today is 2026-06-01; set the clock" in refusal(defender(folder))


def test_a_clock_that_was_never_set_is_a_warning_because_it_will_be(folder: Path) -> None:
    signed(folder, "cert", NOW, NOW + dt.timedelta(days=400))
    (warning,) = check(defender(folder), dt.datetime(1970, 1, 1, 0, 1, tzinfo=dt.UTC).timestamp())
    assert warning.startswith("the clock of this device says 1970-01-01, so it was never set, and ")
    assert warning.endswith("nothing can be published before it is set (NTP)")


@pytest.mark.parametrize(("days", "warned"), [(1, True), (29, True), (31, False)])
def test_a_certificate_that_ends_soon_is_a_warning(folder: Path, days: int, warned: bool) -> None:  # noqa: FBT001
    signed(folder, "cert", NOW - dt.timedelta(days=1), NOW + dt.timedelta(days=days))
    warnings = check(defender(folder), NOW.timestamp())
    end = (NOW + dt.timedelta(days=days)).date()
    expected = f"defender.certificate: {folder / 'cert.pem'} expires on {end}, in {days} days: renew it"
    assert warnings == ([expected] if warned else [])


def test_an_authority_that_ended_is_refused_unless_another_one_is_in_the_file(folder: Path) -> None:
    good = (folder / "ca.pem").read_text()
    signed(folder, "ca", NOW - dt.timedelta(days=400), NOW - dt.timedelta(days=1))
    assert f"defender.root_ca: {folder / 'ca.pem'} expired on 2026-05-31" in refusal(defender(folder))
    with (folder / "ca.pem").open("a") as file:
        file.write(good)
    assert check(defender(folder), NOW.timestamp()) == []


def test_the_thing_as_client_id_is_a_warning(folder: Path) -> None:
    (warning,) = check(defender(folder, client_id="mything1"), NOW.timestamp())
    assert "would throw each other out" in warning


def test_a_token_needs_its_library_and_a_pin_for_its_owner_alone(folder: Path) -> None:
    values = {"library": str(folder / "ca.pem"), "pin_file": str(folder / "secret")}
    settings = defender(folder, private_key="", auth=Auth(method="pkcs11", **values))
    assert check(settings, NOW.timestamp()) == []
    for key in values:
        wrong = defender(folder, private_key="", auth=Auth(method="pkcs11", **(values | {key: ""})))
        assert refusal(wrong).startswith(f"defender.auth.{key}: expected a path, found none")
        wrong = defender(folder, private_key="", auth=Auth(method="pkcs11", **(values | {key: "/nowhere"})))
        assert refusal(wrong).startswith(f"defender.auth.{key}: /nowhere cannot be read")
    (folder / "secret").write_text("\n")
    assert refusal(settings).startswith(f"defender.auth.pin_file: {folder / 'secret'} is empty")


@pytest.mark.parametrize("key", ["password_file", "token_file", "signature_file"])
def test_every_secret_is_for_its_owner_alone(folder: Path, key: str) -> None:
    auth = Auth(method="custom-authorizer", **{key: str(folder / "secret")})
    settings = defender(folder, certificate="", private_key="", auth=auth)
    assert check(settings, NOW.timestamp()) == []
    (folder / "secret").chmod(0o644)
    assert refusal(settings).startswith(f"defender.auth.{key}: {folder / 'secret'} has mode 0644")


@settings(deadline=None, max_examples=25)
@given(
    st.datetimes(dt.datetime(1951, 1, 1), dt.datetime(2120, 1, 1)),  # noqa: DTZ001 - hypothesis wants them so
    st.integers(1, 200 * 365 * DAY_S),
)
def test_the_dates_are_those_that_were_signed(start: dt.datetime, length_s: int) -> None:
    """UTCTime before 2050, GeneralizedTime from then on; the truth is the library that wrote them."""
    key = ec.generate_private_key(ec.SECP256R1())
    begin = start.replace(microsecond=0, tzinfo=dt.UTC)
    end = begin + dt.timedelta(seconds=length_s)
    who = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a" * 60)])
    made = x509.CertificateBuilder(who, who, key.public_key(), 1 << 150, begin, end).sign(key, hashes.SHA256())
    found = validity(made.public_bytes(serialization.Encoding.DER))
    assert found == (begin.timestamp(), end.timestamp())


def test_every_certificate_of_a_file_is_read(folder: Path) -> None:
    both = (folder / "cert.pem").read_text() + "a comment\n" + (folder / "ca.pem").read_text()
    found = validities(both)
    truth = [x509.load_pem_x509_certificate((folder / name).read_bytes()) for name in ("cert.pem", "ca.pem")]
    assert [tuple(one) for one in found] == [
        (made.not_valid_before_utc.timestamp(), made.not_valid_after_utc.timestamp()) for made in truth
    ]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_certificate_is_refused_or_read_and_nothing_else(folder: Path, data: st.DataObject) -> None:
    der = bytearray(ssl.PEM_cert_to_DER_cert((folder / "cert.pem").read_text()))
    der[data.draw(st.integers(0, 130))] = data.draw(st.integers(0, 255))
    try:
        validity(bytes(der[: data.draw(st.integers(0, len(der)))]))
    except ValueError as error:
        assert str(error)  # noqa: PT017


@given(st.binary())
def test_bytes_are_no_certificate(noise: bytes) -> None:
    with pytest.raises(ValueError, match="it is no certificate"):
        validity(noise)
