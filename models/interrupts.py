"""Programs that start others: ended from outside they clean up, as after Ctrl-C."""

import signal


def end_as_interrupted() -> None:
    """Let SIGTERM and SIGHUP raise KeyboardInterrupt, unless whoever started the program has it ignore them."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # which nohup does
            signal.signal(number, signal.default_int_handler)
