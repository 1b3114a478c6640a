"""`lighterman run -it` at a terminal that the test holds."""

from __future__ import annotations

import os
import signal

import pytest
from cli_support import AtTerminal, lighterman, one_line, start

pytestmark = pytest.mark.real


def test_size_is_set_before_the_program_starts() -> None:
    with AtTerminal("run", "-it", "busybox", "stty", "size") as terminal:
        assert terminal.wait() == 0
        assert terminal.seen == b"40 100\r\n"
        assert terminal.attributes() == terminal.before


def test_a_shell_keys_resize_and_restore() -> None:
    with AtTerminal("run", "-it", "busybox", "sh") as terminal:
        terminal.expect(b"# ")
        assert terminal.is_raw
        terminal.type(b"echo $((40 + 2)); test -t 0 && test -t 2 && echo is-a-tt$0\r")
        terminal.expect(b"\r\n42\r\n")
        terminal.expect(b"is-a-ttsh\r\n")
        # Ctrl-C is the program's, not ours.
        # Told by the job itself: it has the keyboard by then.
        terminal.type(b"sh -c 'echo aslee$((1)); exec sleep 1000'\r")
        terminal.expect(b"aslee1\r\n")
        terminal.type(b"\x03")
        terminal.expect(b"# ")
        terminal.type(b"exit 5\r")
        assert terminal.wait() == 5
        assert terminal.attributes() == terminal.before


def test_a_resize_reaches_the_program() -> None:
    program = "trap 'stty size; exit 6' WINCH; echo up; while :; do sleep 0.05; done"
    with AtTerminal("run", "-it", "busybox", "sh", "-c", program) as terminal:
        terminal.expect(b"up\r\n")
        terminal.resize(31, 77)
        terminal.expect(b"31 77\r\n")
        assert terminal.wait() == 6


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_restored_when_a_signal_ends_it(number: signal.Signals) -> None:
    with AtTerminal("run", "-it", "busybox", "sh", "-c", "echo up; sleep 1000") as terminal:
        terminal.expect(b"up\r\n")
        assert terminal.is_raw
        terminal.process.send_signal(number)
        assert terminal.wait() == 128 + number
        assert terminal.attributes() == terminal.before


def test_restored_when_the_start_fails() -> None:
    with AtTerminal("run", "-it", "busybox", "no-such-program") as terminal:
        assert terminal.wait() == 127
        assert terminal.attributes() == terminal.before
        assert terminal.seen.startswith(b"lighterman: command 'no-such-program' ")
        assert terminal.seen.count(b"\n") == 1


def test_t_alone_leaves_the_keys_to_this_terminal() -> None:
    with AtTerminal("run", "-t", "busybox", "sh", "-c", "stty size; sleep 1000") as terminal:
        terminal.expect(b"40 100\r")
        assert not terminal.is_raw
        terminal.type(b"\x03")
        assert terminal.wait() == 130


def test_t_without_a_terminal_of_ours() -> None:
    done = lighterman("run", "-t", "busybox", "sh", "-c", "test -t 1 && echo tty")
    assert (done.returncode, done.stdout) == (0, b"tty\r\n")


def test_it_needs_a_terminal() -> None:
    done = lighterman("run", "-it", "busybox", "true")
    assert (done.returncode, one_line(done)) == (125, "the input device is not a TTY")


def test_the_terminal_goes_away() -> None:
    master, slave = os.openpty()
    with start("run", "-it", "busybox", "sh", "-c", "echo up; sleep 1000", stdin=slave, stdout=slave) as program:
        os.close(slave)
        assert os.read(master, 100) == b"up\r\n"
        # It is not this one's controlling terminal, so that the kernel sends no SIGHUP: nobody does.
        os.close(master)
        program.send_signal(signal.SIGHUP)
        assert program.wait(60) == 129
        assert program.stderr is not None
        assert program.stderr.read() == b""
