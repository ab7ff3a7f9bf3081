"""`python -m service` with a scoring thread that ends when the process is sent SIGUSR1: by what ends a Python thread.

A debugger could end a thread from outside; this needs none.
"""

import ctypes
import signal
import sys
import threading


def _kill_scoring() -> None:
    while True:
        signal.sigwait({signal.SIGUSR1})
        for thread in threading.enumerate():
            if thread.name == "scoring" and thread.ident is not None:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))


if __name__ == "__main__":
    # In all threads that are started from here, and an import starts some.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    from service.__main__ import main

    threading.Thread(target=_kill_scoring, daemon=True).start()
    sys.exit(main(sys.argv[1:]))
