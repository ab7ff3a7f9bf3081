"""The proxy between others: what it loses is counted, and as a share of what came."""

import socket
import threading

from reliability.proxy import Proxy


def test_the_share_that_is_lost_is_of_the_pieces_whose_fate_was_asked_for() -> None:
    fates = iter(["passed", "passed", "passed", "cut"])
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def echo() -> None:
            connection, _ = listener.accept()
            with connection:
                while piece := connection.recv(100):
                    connection.sendall(piece)

        threading.Thread(target=echo, daemon=True).start()
        with (
            Proxy(listener.getsockname()[:2], fate=lambda: next(fates)) as proxy,  # type: ignore[arg-type]
            socket.create_connection(proxy.address, timeout=10) as client,
        ):
            assert proxy.lost_share == 0
            heard = []
            for _ in range(4):
                client.sendall(b"x")
                heard.append(client.recv(100))
    assert heard == [b"x", b"x", b"x", b""]
    assert proxy.lost_share == 0.25
