"""A storage in memory on which several commands run at once, one call at a time, in an order that a test chooses.

Every call can also be the one at which a command is killed before it takes effect, killed after it took effect, or
told that it failed although it took effect. `explore` walks all orders (and faults) that lead to different states:
two schedules after which storage and everything each command has seen are equal have the same future, so only one
of them is followed. A test says which calls are worth a turn of their own: those that others can see or change.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, BinaryIO

from pipelines.errors import AlreadyExists, NotFound, PipelineError, StorageError
from pipelines.storage import Storage, StoredFile

GO, KILL_BEFORE, KILL_AFTER, LOSE_ANSWER, ABANDON = "go", "kill before", "kill after", "lose answer", "abandon"
FAULTS = (KILL_BEFORE, KILL_AFTER, LOSE_ANSWER)
URI = "sim://world"


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours may catch it."""


class Violation(AssertionError):
    """Something that may never happen did."""


Watch = Callable[["World", str, str, bytes], None]


class World:
    """What stands in storage, and a watch that is told of every change."""

    def __init__(self, files: dict[str, bytes] | None = None, watch: Watch | None = None) -> None:
        self.files = dict(files or {})
        self.watch = watch

    def digest(self) -> str:
        summary = hashlib.sha256()
        for path, data in sorted(self.files.items()):
            summary.update(path.encode() + hashlib.sha256(data).digest())
        return summary.hexdigest()

    def changed(self, verb: str, path: str, data: bytes = b"") -> None:
        if self.watch is not None:
            self.watch(self, verb, path, data)


class SimStorage(Storage):
    """The five verbs over a world; `gate` is asked before each call."""

    def __init__(self, world: World, gate: Callable[[str, str, Callable[[], Any]], Any] | None = None) -> None:
        super().__init__(URI)
        self.world = world
        self._gate = gate or (lambda _verb, _path, effect: effect())

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        data: bytes = self._gate("read", path, lambda: self._get(path))
        return data[offset:] if length is None else data[offset : offset + length]

    def size(self, path: str) -> int | None:
        size: int | None = self._gate(
            "size", path, lambda: len(self.world.files[path]) if path in self.world.files else None
        )
        return size

    def list(self, prefix: str = "") -> list[StoredFile]:
        start = prefix.rstrip("/") + "/" if prefix else ""

        def effect() -> list[StoredFile]:
            found = [(path, len(data)) for path, data in self.world.files.items() if path.startswith(start)]
            return [StoredFile(path, size, 0.0, "") for path, size in sorted(found)]

        files: list[StoredFile] = self._gate("list", prefix, effect)
        return files

    def put(self, path: str, data: bytes | memoryview, *, lasts: bool = True) -> None:
        self._gate("put", path, lambda: self._set("put", path, bytes(data)))

    def create(self, path: str, data: bytes) -> None:
        def effect() -> None:
            if path in self.world.files:
                raise AlreadyExists(f"{path} already exists")
            self._set("create", path, data)

        self._gate("create", path, effect)

    def delete(self, *paths: str, lasts: bool = True) -> None:
        for path in paths:
            self._gate("delete", path, partial(self._drop, path))

    def _drop(self, path: str) -> None:
        if path in self.world.files:
            self.world.changed("delete", path)
        self.world.files.pop(path, None)

    def open_file(self, path: str) -> BinaryIO:
        return io.BytesIO(self.read(path))

    def _get(self, path: str) -> bytes:
        if path not in self.world.files:
            raise NotFound(f"{path} does not exist")
        return self.world.files[path]

    def _set(self, verb: str, path: str, data: bytes) -> None:
        self.world.changed(verb, path, data)
        self.world.files[path] = data


Command = Callable[[Storage, str], None]
"""Does its work on a storage; the text is a name that no other process has."""


HasTurn = Callable[[str, str, str], bool]
"""Verb and path of a call, and the verb of the call before it -> whether the call waits for a turn."""


@dataclass
class Process:
    """One command that runs step by step, and is run again when it was killed or failed."""

    name: str
    command: Command
    world: World
    has_turn: HasTurn
    restarts: int = 2
    seen: Any = field(default_factory=hashlib.sha256)
    finished: bool = False
    succeeded: bool = False
    broken: BaseException | None = None
    waiting: tuple[str, str] | None = None

    def start(self) -> None:
        self._turn = threading.Semaphore(0)
        self._answer = threading.Semaphore(0)
        self._order = GO
        self._before = ""
        threading.Thread(target=self._run, daemon=True).start()
        self._answer.acquire()

    def step(self, order: str) -> None:
        """Let the call that the command waits at happen, in the way ordered, and the command go on to its next."""
        self.seen.update(f"|{order}".encode())
        self._order = order
        self._turn.release()
        self._answer.acquire()

    def abandon(self) -> None:
        """Stop the command for good, where the rest of the run was seen before."""
        self.restarts = -1
        if not self.finished:
            self.step(ABANDON)

    def _run(self) -> None:
        LOCAL.storage = SimStorage(self.world, self._gate)
        try:
            life = 0
            while life <= self.restarts:
                try:
                    LOCAL.process = f"{self.name}{life}"
                    self.command(LOCAL.storage, LOCAL.process)
                    self.succeeded = True
                    return
                except (Killed, PipelineError) as error:
                    self.seen.update(f"|{type(error).__name__}".encode())
                life += 1
        except BaseException as error:  # noqa: BLE001  # told to the main thread, which raises it
            self.broken = error
        finally:
            self.finished = True
            self.waiting = None
            self._answer.release()

    def _gate(self, verb: str, path: str, effect: Callable[[], Any]) -> Any:
        before, self._before = self._before, verb
        if not self.has_turn(verb, path, before):
            return effect()
        self.waiting = (verb, path)
        self.seen.update(f"|{verb} {path}".encode())
        self._answer.release()
        self._turn.acquire()
        if self._order in (KILL_BEFORE, ABANDON):
            raise Killed
        try:
            result = effect()
        except PipelineError as error:
            if self._order == GO:
                self.seen.update(type(error).__name__.encode())
                raise
            result = None
        if self._order == KILL_AFTER:
            raise Killed
        if self._order == LOSE_ANSWER:
            raise StorageError(f"the answer to {verb} {path} was lost")
        self.seen.update(repr(result).encode())
        return result


LOCAL = threading.local()
"""The storage and the name of the process in this thread; `Storage.open("sim://world")` returns it in the tests."""


def open_here(uri: str) -> Storage:
    """Stand in for `Storage.open` during a simulation."""
    assert uri == URI, uri
    storage: Storage = LOCAL.storage
    return storage


Schedule = tuple[tuple[int, str], ...]


def explore(
    setup: World,
    commands: Sequence[tuple[str, Command]],
    finish: Callable[[World, list[Process], Schedule], None],
    *,
    has_turn: HasTurn = lambda _verb, _path, _before: True,
    faults: int = 0,
    limit: int = 100_000,
) -> int:
    """Run the commands in every order that makes a difference, with up to `faults` faults; return how many runs.

    Args:
        setup: what stands before, and the watch over changes.
        commands: name and command of each process.
        finish: called after each run; raises where the end is wrong.
        has_turn: whether a call waits for its turn; others happen together with the call before.
        faults: how many calls of a run may be killed or lose their answer.
        limit: more runs than this are a mistake in the test.
    """
    visited: set[tuple[Any, ...]] = set()
    todo: list[Schedule] = [()]
    runs = 0
    while todo:
        runs += 1
        assert runs <= limit, f"more than {limit} runs"
        _run(setup, commands, todo.pop(), has_turn, faults, visited, todo, finish)
    return runs


def _run(
    setup: World,
    commands: Sequence[tuple[str, Command]],
    given: Schedule,
    has_turn: HasTurn,
    faults: int,
    visited: set[tuple[Any, ...]],
    todo: list[Schedule],
    finish: Callable[[World, list[Process], Schedule], None],
) -> None:
    """Follow a schedule, then let the first process that can go on, noting every other choice that is new."""
    world = World(setup.files, setup.watch)
    processes = [Process(name, command, world, has_turn) for name, command in commands]
    for process in processes:
        process.start()
    done: Schedule = ()
    while ready := [index for index, process in enumerate(processes) if not process.finished]:
        if len(done) < len(given):
            choice = given[len(done)]
        else:
            spent = sum(order != GO for _, order in done)
            state = (world.digest(), spent, *(process.seen.hexdigest() for process in processes))
            orders = (GO, *FAULTS) if spent < faults else (GO,)
            choices = [(index, order) for index in ready for order in orders]
            if state in visited:  # everything that can follow has been or will be seen
                for process in processes:
                    process.abandon()
                return
            visited.add(state)
            choice = choices[0]
            todo += [(*done, other) for other in choices[1:]]
        processes[choice[0]].step(choice[1])
        done = (*done, choice)
        if broken := processes[choice[0]].broken:
            raise Violation(f"{processes[choice[0]].name} broke after {done}") from broken
    finish(world, processes, done)
