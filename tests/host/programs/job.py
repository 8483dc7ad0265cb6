"""Run a command as a shell runs a job on its terminal, and tell when it stops; then its exit code.

`job.py COMMAND …`: stdin becomes this process's controlling terminal. Each time the command is
stopped a JSON line on stderr says so, and whether the terminal echoes what is typed. SIGUSR1
continues the command.
"""

import fcntl
import json
import os
import signal
import sys
import termios


def main() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        os.tcsetpgrp(0, os.getpid())
        signal.signal(signal.SIGTTOU, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        os.execvp(sys.argv[1], sys.argv[1:])
    while True:
        status = os.waitpid(child, os.WUNTRACED)[1]
        if not os.WIFSTOPPED(status):
            sys.exit(os.waitstatus_to_exitcode(status))
        echoes = bool(termios.tcgetattr(0)[3] & termios.ECHO)
        sys.stderr.write(json.dumps({"stopped": True, "echoes": echoes}) + "\n")
        sys.stderr.flush()
        signal.sigwait({signal.SIGUSR1})
        os.killpg(child, signal.SIGCONT)


main()
