"""URLs of several servers, and what is wrong with those that are none."""

import pytest

from models.storeurl import Several, several


@pytest.mark.parametrize("url", ["redis://a:1", "rediss://a:1/0", "unix:///a/b", "", "redis"])
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


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis+cluster://", "HOST:PORT"),
        ("redis+cluster://a", "HOST:PORT.*'a'"),
        ("redis+cluster://a:1,b", "'b'"),
        ("redis+cluster://a:0", "'a:0'"),
        ("redis+cluster://a:65536", "'a:65536'"),
        ("redis+cluster://a:1/main", "takes nothing behind"),
        ("redis+cluster://a:1?db=1", "takes nothing behind"),
        ("redis+sentinel://a:1", "NAME"),
    ],
)
def test_a_malformed_one_says_what_it_takes(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        several(url)


def test_a_password_is_not_said() -> None:
    with pytest.raises(ValueError, match="HOST:PORT") as raised:
        several("redis+cluster://user:secret@a")
    assert "secret" not in str(raised.value)
