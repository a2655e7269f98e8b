"""The etcd store with logins and with TLS: what works, what is renewed, and what is said when it does not work."""

from __future__ import annotations

import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from flanpy.errors import StoreDenied, StoreError, UsageError
from flanpy.stores.etcd import EtcdOptions, open_store
from flanpy.stores.server import free_port
from tests.support.etcd import PrivateEtcd, private_etcd

KEY = "subnets/a"


def node(etcd: PrivateEtcd, prefix: str = "/allowed", password: str = "secret") -> EtcdOptions:
    return etcd.options(prefix, username="node", password=password, progress_s=0.3)


def test_user_and_password_work_without_tls(guarded: PrivateEtcd) -> None:
    with open_store(node(guarded)) as store:
        record = store.create(KEY, b"v", 60)
        assert record is not None
        assert store.read(KEY) == record
        assert store.replace(KEY, b"w", record.mod_revision, 60) is not None
        assert store.delete(KEY)


def test_a_lost_race_or_a_denied_write_leaves_no_lease(guarded: PrivateEtcd) -> None:
    before = guarded.leases()
    with open_store(node(guarded, "/forbidden")) as store, pytest.raises(StoreDenied):
        store.create(KEY, b"v", 60)

    assert guarded.leases() == before


def test_a_watch_on_a_forbidden_prefix_is_denied_and_names_the_cure(guarded: PrivateEtcd) -> None:
    with open_store(node(guarded, "/forbidden")) as store:
        with pytest.raises(StoreDenied, match="give user node a role with readwrite on the prefix /forbidden/"):
            list(store.watch("subnets/", 1))


def test_a_permission_that_is_taken_away_ends_the_watch(directory: Path, measured: Callable[[str], None]) -> None:
    """Row 26: the permission is removed while a watch runs, which etcd would go on serving.

    The watch's dog reads the directory at every sign of life, and ends a watch that may not be read any more.
    Passes when: a visible error < 10 s; never a silently dead watch.
    """
    with private_etcd(directory) as etcd:
        etcd.enable_auth("/allowed")
        with open_store(node(etcd)) as store:
            batches = iter(store.watch("subnets/", store.list("subnets/").revision + 1))
            next(batches)
            etcd.admin("/v3/auth/user/revoke", name="node", role="node")
            started = time.monotonic()
            with pytest.raises(StoreDenied, match="permission denied"):
                list(batches)
            measured(
                f"an error after {time.monotonic() - started:.1f} s (asked every {node(etcd).progress_s:g} s; an agent: 3 s)"
            )


def test_a_wrong_password_is_denied_and_not_shown(guarded: PrivateEtcd) -> None:
    with (
        open_store(node(guarded, password="wr0ng")) as store,
        pytest.raises(StoreDenied, match="invalid user ID or password") as caught,
    ):
        store.read(KEY)

    assert "wr0ng" not in str(caught.value) + repr(node(guarded, password="wr0ng"))


def test_no_login_where_etcd_asks_for_one_is_denied_and_names_the_flags(guarded: PrivateEtcd) -> None:
    with open_store(guarded.options("/allowed")) as store, pytest.raises(StoreDenied, match="etcd-username and etcd-password"):
        store.read(KEY)


def test_a_login_where_etcd_asks_for_none_does_no_harm(etcd: PrivateEtcd) -> None:
    with open_store(etcd.options("/login", username="node", password="secret")) as store:
        assert store.put(KEY, b"v") == store.read(KEY)


def test_an_expired_token_is_renewed_for_calls_and_watches(directory: Path, measured: Callable[[str], None]) -> None:
    """Row 26: the auth token expires.

    etcd refuses the old token; the store logs in again within the same call, and the next watch has a token of its own.
    Passes when: re-authenticated without an error.
    """
    with private_etcd(directory, "--auth-token-ttl=1") as etcd:
        etcd.enable_auth("/allowed")
        with open_store(node(etcd)) as reader, open_store(node(etcd)) as watcher:
            record = reader.put(KEY, b"v")
            assert watcher.read(KEY) == record is not None
            threading.Event().wait(2.5)  # the token's time to live is etcd's, it cannot be moved
            assert reader.read(KEY) == record
            batches = iter(watcher.watch("subnets/", record.mod_revision))
            assert next(batch for batch in batches if batch)[0].record == record
    measured("calls and watches go on after the token's time is over, without an error")


def test_a_token_that_a_restarted_etcd_has_forgotten_is_renewed(directory: Path, measured: Callable[[str], None]) -> None:
    """Row 26: the auth token is gone with a restarted etcd.

    As with one that has expired.
    Passes when: re-authenticated without an error.
    """
    with private_etcd(directory) as etcd:
        etcd.enable_auth("/allowed")
        with open_store(node(etcd)) as store:
            record = store.put(KEY, b"v")
            etcd.kill()
            etcd.start_again()
            assert store.read(KEY) == record
    measured("the first call after the restart is answered")


# ---------------------------------------------------------------------------------------------------- TLS


@dataclass(frozen=True)
class Certificates:
    """Files of a certificate authority, an etcd at 127.0.0.1, a client, and a foreign authority."""

    directory: Path

    def path(self, name: str) -> Path:
        return self.directory / name

    def authority(self, name: str) -> None:
        self._openssl(f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN={name}"
                      f" -keyout {name}.key -out {name}.pem")  # fmt: skip

    def certificate(self, name: str, authority: str, names: str) -> None:
        self._openssl(
            f"req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr"
        )
        self.path(f"{name}.ext").write_text(f"subjectAltName={names}\n")
        self._openssl(f"x509 -req -in {name}.csr -CA {authority}.pem -CAkey {authority}.key -CAcreateserial -days 2"
                      f" -extfile {name}.ext -out {name}.pem")  # fmt: skip

    def _openssl(self, words: str) -> None:
        subprocess.run(["openssl", *words.split()], cwd=self.directory, check=True, capture_output=True, timeout=20)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    made = Certificates(tmp_path_factory.mktemp("certificates"))
    made.authority("ca")
    made.authority("foreign")
    made.certificate("server", "ca", "IP:127.0.0.1,DNS:localhost")
    made.certificate("elsewhere", "ca", "DNS:etcd.example")
    made.certificate("client", "ca", "DNS:client")
    made.certificate("stranger", "foreign", "DNS:client")
    return made


def start_tls(directory: Path, files: Certificates, name: str, *extra: str) -> Iterator[PrivateEtcd]:
    context = ssl.create_default_context(cafile=files.path("ca.pem"))
    context.load_cert_chain(files.path("client.pem"), files.path("client.key"))
    flags = (f"--cert-file={files.path(name + '.pem')}", f"--key-file={files.path(name + '.key')}", *extra)
    with private_etcd(directory, *flags, url=f"https://127.0.0.1:{free_port()}", tls=context) as etcd:
        yield etcd


@pytest.fixture(scope="module")
def tls_etcd(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[PrivateEtcd]:
    """An etcd that takes clients with a certificate of the right authority only."""
    flags = (f"--trusted-ca-file={certificates.path('ca.pem')}", "--client-cert-auth")
    yield from start_tls(tmp_path_factory.mktemp("tls"), certificates, "server", *flags)


def tls(etcd: PrivateEtcd, files: Certificates, cafile: str = "ca", client: str = "client", *more: str) -> EtcdOptions:
    return EtcdOptions(
        (*more, etcd.url),
        prefix="/tls",
        cafile=files.path(f"{cafile}.pem"),
        certfile=files.path(f"{client}.pem") if client else None,
        keyfile=files.path(f"{client}.key") if client else None,
    )


def test_tls_with_a_client_certificate_works(tls_etcd: PrivateEtcd, certificates: Certificates) -> None:
    with open_store(tls(tls_etcd, certificates)) as store:
        record = store.create(KEY, b"v", 60)
        assert record is not None
        batches = iter(store.watch("subnets/", record.mod_revision))
        assert next(batch for batch in batches if batch)[0].record == record


def test_tls_goes_through_dead_endpoints_and_host_names(tls_etcd: PrivateEtcd, certificates: Certificates) -> None:
    dead, by_name = f"https://127.0.0.1:{free_port()}", tls_etcd.url.replace("127.0.0.1", "localhost")
    with open_store(tls(tls_etcd, certificates, "ca", "client", dead, by_name)) as store:
        assert store.put(KEY, b"v") == store.read(KEY)


def test_a_foreign_authority_is_a_clear_error(tls_etcd: PrivateEtcd, certificates: Certificates) -> None:
    with open_store(tls(tls_etcd, certificates, cafile="foreign")) as store:
        with pytest.raises(StoreDenied, match="TLS failed.*check etcd-cafile"):
            store.read(KEY)


def test_a_missing_or_foreign_client_certificate_is_an_error(tls_etcd: PrivateEtcd, certificates: Certificates) -> None:
    for client in ("", "stranger"):
        with open_store(tls(tls_etcd, certificates, client=client)) as store, pytest.raises(StoreError) as caught:
            store.read(KEY)
        assert tls_etcd.url in str(caught.value)


def test_a_certificate_for_another_host_is_refused(directory: Path, certificates: Certificates) -> None:
    for etcd in start_tls(directory, certificates, "elsewhere"):
        with open_store(tls(etcd, certificates)) as store, pytest.raises(StoreDenied, match="names this endpoint"):
            store.read(KEY)


def test_a_certificate_that_was_exchanged_is_read_again(
    directory: Path, tls_etcd: PrivateEtcd, certificates: Certificates, measured: Callable[[str], None]
) -> None:
    """Row 26: the certificate is rotated.

    The files are read again when a handshake fails for the old ones.
    Passes when: the store works again with the new files, without a restart.
    """
    cafile = directory / "ca.pem"
    cafile.write_bytes(certificates.path("foreign.pem").read_bytes())
    client = {"certfile": certificates.path("client.pem"), "keyfile": certificates.path("client.key")}
    with open_store(EtcdOptions((tls_etcd.url,), prefix="/tls", cafile=cafile, **client)) as store:
        with pytest.raises(StoreDenied):
            store.read(KEY)
        cafile.write_bytes(certificates.path("ca.pem").read_bytes())
        store.read(KEY)
    measured("the first call after the exchange of the files is answered")


def test_plain_http_to_a_tls_port_is_an_error_not_a_hang(tls_etcd: PrivateEtcd) -> None:
    with open_store(EtcdOptions((tls_etcd.url.replace("https", "http"),))) as store, pytest.raises(StoreError):
        store.read(KEY)


def test_a_certificate_file_that_is_not_there_is_named(directory: Path) -> None:
    with pytest.raises(StoreDenied, match="etcd-cafile: cannot read .*nowhere.pem: No such file"):
        open_store(EtcdOptions(("https://127.0.0.1:2379",), cafile=directory / "nowhere.pem"))


def test_options_that_contradict_each_other_are_usage_errors(directory: Path) -> None:
    with pytest.raises(UsageError, match="is not encrypted"):
        EtcdOptions(("http://127.0.0.1:2379",), cafile=directory / "ca.pem")
