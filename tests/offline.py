"""Commands where there is no network: in a namespace of their own, which has not even a loopback that is up.

As a script it makes sure that nothing can be reached, says so, and becomes the command that it was given.
"""

import errno
import os
import shutil
import socket
import subprocess
import sys
from functools import cache

NOTHING_REACHED = "127.0.0.1: " + os.strerror(errno.ENETUNREACH)  # elsewhere it refuses a connection, or takes it
APART = ["unshare", *([] if os.geteuid() == 0 else ["--map-root-user"]), "--net"]


@cache
def refused() -> str:
    """Why no network namespace can be made here; empty where one can."""
    if not shutil.which(APART[0]):
        return f"there is no {APART[0]}"
    tried = subprocess.run([*APART, "true"], capture_output=True, text=True)
    return (tried.stderr.strip() or f"{APART[0]} ends with {tried.returncode}") if tried.returncode else ""


def offline(*command: object) -> list[str]:
    """The command where there is no network; as it is where no namespace can be made."""
    apart = [] if refused() else [*APART, sys.executable, __file__]
    return [*apart, *map(str, command)]


def main(command: list[str]) -> str:
    """Become the command; returns what is wrong where something can be reached."""
    try:
        socket.create_connection(("127.0.0.1", 9), timeout=1).close()
    except OSError as error:
        if error.errno == errno.ENETUNREACH:
            print(NOTHING_REACHED, flush=True)
            os.execvp(command[0], command)
        return f"127.0.0.1 can be reached: {error}"
    return "127.0.0.1 can be reached"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
