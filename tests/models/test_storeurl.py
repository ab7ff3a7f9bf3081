"""URLs of several servers, and what is wrong with those that are none."""

import shutil
import subprocess
from pathlib import Path
from urllib.parse import quote

import pytest

from models.storeurl import Several, several
from tests.service.tls import certificate


@pytest.mark.parametrize(
    "url",
    [
        "redis://a:1",
        "redis://a/",
        "redis://:pw@[::1]:1/15?client_name=x",
        "rediss://u:p%2Fw@a:1/0",
        "rediss://a?password=p/w@d&client_name=/a@b",
        "unix:///a/b",
        "unix://u:pw@/run/redis@1/socket?db=1",
    ],
)
def test_one_server_is_for_the_client_to_understand(url: str) -> None:
    assert several(url) is None


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("redis+cluster://a:1", Several((("a", 1),), "", None, None)),
        ("redis+cluster://a:1,10.0.0.1:65535/", Several((("a", 1), ("10.0.0.1", 65535)), "", None, None)),
        ("redis+cluster://u:p%40ss@[::1]:1,b:2", Several((("::1", 1), ("b", 2)), "", "u", "p@ss")),
        ("redis+sentinel://:secret@a:1,b:2/main", Several((("a", 1), ("b", 2)), "main", None, "secret")),
    ],
)
def test_several_servers_are_named_by_their_hosts(url: str, found: Several) -> None:
    assert several(url) == found
    assert found.cluster == url.startswith("redis+cluster")


def test_what_is_spoken_to_by_tls_has_its_options_behind_a_question_mark(tmp_path: Path) -> None:
    known = tmp_path / "known@here.pem"
    known.write_bytes(certificate(tmp_path).read_bytes())
    assert several("rediss+cluster://a:1") == Several((("a", 1),), "", None, None, {"ssl": True})
    query = f"ssl_ca_certs={quote(str(known))}&ssl_check_hostname=false"
    tls: dict[str, str | bool] = {"ssl": True, "ssl_ca_certs": str(known), "ssl_check_hostname": False}
    assert several(f"rediss+sentinel://u:p@a:1/main?{query}") == Several((("a", 1),), "main", "u", "p", tls)


@pytest.mark.parametrize("url", ["rediss://a:1", "rediss+cluster://a:1", "rediss+sentinel://a:1/main"])
def test_files_that_tls_cannot_use_are_refused_before_anybody_connects(url: str, tmp_path: Path) -> None:
    pem, text, other = certificate(tmp_path), tmp_path / "text.pem", tmp_path / "other"
    text.write_text("no certificate")
    other.mkdir()
    locked = tmp_path / "locked.pem"
    how = ("ec", "-in", pem, "-out", locked, "-aes256", "-passout", "pass:secret")
    subprocess.run([str(shutil.which("openssl")), *map(str, how)], check=True, capture_output=True)
    for query, said in [
        ("ssl_ca_certs=/no/such.pem", "ssl_ca_certs .* is not a file"),
        (f"ssl_ca_certs={tmp_path}", "ssl_ca_certs .* is not a file"),
        (f"ssl_ca_certs={text}", "ssl_ca_certs .* is not a file of certificates"),
        (f"ssl_ca_certs={'n' * 300}", "ssl_ca_certs .* too long"),
        ("ssl_ca_certs=%00", "ssl_ca_certs .* null"),
        (f"ssl_keyfile={pem}", "ssl_keyfile only with the ssl_certfile"),
        (f"ssl_certfile={text}", "ssl_certfile and ssl_keyfile .* are not a certificate and its key"),
        (f"ssl_certfile={certificate(other)}&ssl_keyfile={pem}", "are not a certificate and its key"),
        (f"ssl_certfile={pem}.crt&ssl_keyfile={locked}", "without a passphrase"),
    ]:
        with pytest.raises(ValueError, match=said):
            several(f"{url}?{query}")
    several(f"{url}?ssl_ca_certs={pem}.crt&ssl_certfile={pem}")
    if url.startswith("rediss://"):
        assert several(f"{url}?ssl_certfile={pem}.crt&ssl_keyfile={locked}&ssl_password=secret") is None


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", r"begins with none of redis://, redis\+cluster://, .*unix://"),
        ("redis", "begins with none of"),
        ("http://a:1", "begins with none of"),
        ("redis://", "redis:// names no host; write redis://HOST:PORT"),
        ("redis:///0", "redis:// names no host"),
        ("redis://:6379", "redis:// names no host"),
        ("rediss://u:pw@/0", "rediss:// names no host; write rediss://HOST:PORT"),
        ("redis://a:1/abc", "number of a database"),
        ("redis://a:1/1/2", "number of a database"),  # would be 12
        ("redis://a:1/-1", "number of a database"),
        ("unix://", "unix:///PATH"),
        ("unix:///", "unix:///PATH"),
        ("unix://u:pw@", "unix:///PATH"),
        ("unix://run/store.sock", "unix:///PATH"),  # would be /store.sock
        ("redis+cluster://", "HOST:PORT"),
        ("redis+cluster://a", "HOST:PORT.*number 1"),
        ("redis+cluster://a:1,b", "number 2"),
        ("redis+cluster://a:0", "number 1"),
        ("redis+cluster://a:65536", "number 1"),
        ("redis+cluster://a:1/main", "takes nothing behind"),
        ("redis+cluster://a:1?db=1", "takes nothing behind"),
        ("redis+sentinel://a:1", "NAME"),
        ("redis+cluster://a:1?ssl_ca_certs=/", "takes nothing behind"),
        ("rediss+sentinel://a:1", "NAME"),
        ("rediss+cluster://a", "number 1"),
        ("rediss+cluster://a:1?ssl_ca_certs=/no/such.pem", r"ssl_ca_certs of rediss\+cluster:// is not a file"),
        ("rediss+cluster://a:1?ssl_check_hostname=no", "ssl_check_hostname=true or false"),
        ("rediss+cluster://a:1?ssl_check_hostname=true&ssl_check_hostname=false", "each once"),
        ("rediss+cluster://a:1?ssl_ca_certs=", "is not a file"),
        ("rediss+cluster://a:1?db=1", "ssl_ca_certs, ssl_certfile, ssl_keyfile and"),
    ],
)
def test_a_malformed_one_says_what_it_takes(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        several(url)


@pytest.mark.parametrize(
    "url",
    [
        "redis+cluster://user:s3cr%40t@a",
        "redis+cluster://user:s3cr",
        "redis+cluster://user:s3cr/et@a:1",
        "redis+cluster://a:1,b:2?s3cr",
        "redis+sentinel://user:s3cr/et@a:1/main",
        "redis+sentinel://user:s3cr#et@a:1/main",
        "rediss+cluster://a:1?s3cr=s3cr",
        "rediss+cluster://user:s3cr?et@a:1",
        "redis://user:s3cr/et@a:1",
        "redis://user:s3cr?et@a:1",
        "redis://user:s3cr#et@a:1",
        "redis://user:[s3cr@a:1",
        "redis://user:[s3cr]@a:1",
        "redis://user:s3cr\u2100@a:1",
        "redis://:p@s3cr/et@a:1",
        "unix://user:s3cr/et@/a/b",
        "unix://user:1/s3cr@/a/b",
        "redis://user:123/et@a:1",  # would be port 123 of the host user
        "redis://user:123?et@a:1",
        "redis://user:123#et@a:1",
        "redis://user:s3cr@",
        "redis://user:s3cr@a:1/s3cr",
        "unix://user:s3cr@",
    ],
)
def test_a_password_is_not_said(url: str) -> None:
    with pytest.raises(ValueError, match=r"%2F|HOST:PORT|takes nothing|ssl_ca_certs|database|PATH") as raised:
        several(url)
    assert "s3cr" not in str(raised.value)
    assert "123" not in str(raised.value)
