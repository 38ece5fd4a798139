"""Messages between processes beside the process group: errors, deaths, work to share.

A collective cannot tell a rank that waits in it why the others do not come. Each rank therefore
keeps one connection to the main process, read by a thread. A rank that fails says why, and all end
within seconds; a rank that dies closes its connection, which the kernel does even for ``kill -9``.
Messages are JSON; both ends know a secret that travelled through the process group.
"""

import json
import os
import queue
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

from lcia.errors import LciaError

Message = dict[str, Any]
Handler = Callable[[int, Message], Message | None]

SAME_ERROR_S = 1.0
"""The main process prints its own error rather than another rank's, if it has one by then."""

LAST_WORDS_S = 5.0
"""How long a failing rank waits for the main process to print what it said."""

READ_S = 0.3
"""How long the main process outlives its last message, so that a reset does not overtake it."""

OVERTAKEN_S = 2.0
"""How long the main process looks for a dead rank once it is asked to end.

A launcher that finds one sends SIGTERM to the rest, which may come before the closed connection is
read.
"""

RETRY_S = 0.05
"""Longest pause between two requests for what is not there yet."""

GOODBYE_S = 60.0
"""How long the main process, when it is done, waits for the others to be."""

SILENCE_S = (20, 10, 3)
"""A machine that does not answer: seconds until asked, seconds between questions, how many."""

MEET = "meet"


class Channel:
    """One end of the connections of a run; use ``Channel.open``.

    Attributes:
        rank: of this process.
        processes: how many there are.
        logs: where other ranks' output goes, for messages; ``{rank}`` in it is the rank.
    """

    def __init__(self, rank: int, processes: int, peers: dict[int, Connection]) -> None:
        self.rank = rank
        self.processes = processes
        self.logs = ""
        self._peers = peers
        self._handlers: dict[str, Handler] = {MEET: self._meet}
        self._meetings = 0
        self._here: dict[int, dict[int, Any]] = {}
        self._replies: queue.Queue[Message] = queue.Queue()
        self._gone: set[int] = set()
        self._ending = threading.Lock()
        self._sending = threading.Lock()
        self._meeting = threading.Lock()
        for peer in peers:
            _notice_silence(peers[peer])
            threading.Thread(target=self._read, args=(peer,), daemon=True).start()

    @classmethod
    def open(
        cls, rank: int, processes: int, *, host: str, spread: Callable[[list[Any]], Any]
    ) -> "Channel":
        """Connect all ranks to the main one.

        Args:
            rank: of this process.
            processes: how many there are.
            host: the main process's machine, as the others reach it.
            spread: gives every rank the main one's list, in place; a collective.
        """
        if rank:
            where: list[Any] = [None]
            spread(where)
            port, secret = where[0]
            connection = Client((host, port), authkey=bytes.fromhex(secret))
            connection.send_bytes(json.dumps({"rank": rank}).encode())
            return cls(rank, processes, {0: connection})
        secret = secrets.token_hex(16)
        local = host in ("localhost", "127.0.0.1", "::1")
        address = ("127.0.0.1" if local else "", 0)
        with Listener(address, backlog=processes, authkey=bytes.fromhex(secret)) as listener:
            spread([(listener.address[1], secret)])
            peers = {}
            for _ in range(processes - 1):
                connection = listener.accept()
                peers[json.loads(connection.recv_bytes())["rank"]] = connection
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, _end_later)
        return cls(0, processes, peers)

    def serve(self, topic: str, handler: Handler) -> None:
        """Answer requests on a topic; on the main rank only.

        Args:
            topic: what requests name.
            handler: gets rank and request, in a thread of that rank; None as the reply asks to
                come again. What it raises ends all processes.
        """
        self._handlers[topic] = handler

    def request(self, topic: str, **message: Any) -> Message:
        """Ask the main rank, again and again until it has a reply.

        It may take as long as the work behind it does: an error or a death of any rank ends this
        process in the meantime.
        """
        message = {"topic": topic, **message}
        pause = RETRY_S / 64
        while True:
            if self.rank == 0:
                reply = self._handlers[topic](0, message)
            else:
                self._send(0, message)
                reply = self._replies.get()["reply"]
            if reply is not None:
                return reply
            time.sleep(pause)
            pause = min(2 * pause, RETRY_S)

    def meet(self, value: Any = None) -> Any:
        """Wait until every rank is here, and return the main one's value.

        Args:
            value: JSON; that of other ranks than the main one is left out.
        """
        self._meetings += 1
        shown = value if self.rank == 0 else None
        return self.request(MEET, number=self._meetings, value=shown)["value"]

    def _meet(self, rank: int, message: Message) -> Message | None:
        number = message["number"]
        with self._meeting:
            self._here.pop(number - 2, None)  # whoever comes to this one has left that one
            here = self._here.setdefault(number, {})
            here[rank] = message["value"]
            return {"value": here[0]} if len(here) == self.processes else None

    def fail(self, message: str, code: int) -> None:
        """End every process; the main one prints the message. Does not return."""
        if self.rank == 0:
            self._end(message, code)
        self._send(0, {"error": message, "code": code})
        time.sleep(LAST_WORDS_S)  # the reader ends this process when the main one has printed
        leave(f"Process {self.rank}: {message}", code)

    def close(self) -> None:
        """Say that this process ends well; the main one first lets the others have their replies.

        A rank that asks again for a reply, after a pause, would wait for ever if the main one were
        gone by then.
        """
        deadline = time.monotonic() + (0 if self.rank else GOODBYE_S)
        while len(self._gone) < len(self._peers) and time.monotonic() < deadline:
            time.sleep(RETRY_S / 10)
        for peer in self._peers:
            self._send(peer, {"bye": True})

    def _read(self, peer: int) -> None:
        connection = self._peers[peer]
        while True:
            try:
                message = json.loads(connection.recv_bytes())
            except (EOFError, OSError):
                if peer not in self._gone:
                    self._lost(peer)
                self._gone.add(peer)
                return
            if "bye" in message:
                self._gone.add(peer)
            elif "end" in message:
                leave("", message["end"])
            elif "reply" in message:
                self._replies.put(message)
            elif "error" in message:
                time.sleep(SAME_ERROR_S)
                self._end(
                    f"Process {peer} of {self.processes}: {message['error']}", message["code"]
                )
            else:
                self._send(peer, {"reply": self._reply(peer, message)})

    def _reply(self, peer: int, message: Message) -> Message | None:
        """Return what a handler says; what it raises ends all processes."""
        handler = self._handlers.get(message["topic"])
        replied = False
        try:
            reply = handler(peer, message) if handler else None
            replied = True
        finally:
            if not replied:
                error = sys.exc_info()[1]
                text = (
                    str(error)
                    if isinstance(error, LciaError)
                    else f"{type(error).__name__}: {error}"
                )
                self._end(text, getattr(error, "exit_code", 1))
        return reply

    def _lost(self, peer: int) -> None:
        log = f" Its output: {self.logs.format(rank=peer)}." if self.logs and peer else ""
        text = (
            f"Process {peer} of {self.processes} ended without a word: killed, out of memory or "
            f"crashed.{log} The others stop. Run the same command again to continue."
        )
        if self.rank:
            leave(text if self.rank == 1 else "", 1)
        self._end(text, 1)

    def _end(self, message: str, code: int) -> None:
        """Print a message and end all processes; of several calls only the first counts."""
        self._ending.acquire()  # kept: this process ends here
        say(message)
        self._gone.update(self._peers)
        for peer in self._peers:
            self._send(peer, {"end": code})
        time.sleep(READ_S)
        leave("", code)

    def _send(self, peer: int, message: Message) -> None:
        try:
            with self._sending:
                self._peers[peer].send_bytes(json.dumps(message).encode())
        except OSError:
            return  # it ended meanwhile, which its reader sees and tells


def _end_later(number: int, frame: Any) -> None:
    """End by this signal, after the readers had the time to say which rank died before."""
    time.sleep(OVERTAKEN_S)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _notice_silence(connection: Connection) -> None:
    """Have the kernel end a connection whose other machine is gone, which sends no goodbye."""
    idle, between, times = SILENCE_S
    with socket.socket(fileno=os.dup(connection.fileno())) as plug:
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("IDLE", idle), ("INTVL", between), ("CNT", times)):
            if hasattr(socket, f"TCP_KEEP{name}"):  # not everywhere
                plug.setsockopt(socket.IPPROTO_TCP, getattr(socket, f"TCP_KEEP{name}"), value)


LAST_WORDS: list[int] = []
"""A file descriptor of the terminal, where this process's own output goes to a file."""


def say(message: str) -> None:
    """Write a line on the terminal, whatever became of stderr."""
    sys.stderr.flush()
    os.write(LAST_WORDS[0] if LAST_WORDS else 2, f"{message}\n".encode())


def leave(message: str, code: int) -> None:
    """End this process from any thread, whatever the main one waits for."""
    if message:
        say(message)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
