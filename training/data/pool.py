"""A few processes that work through an ordered stream of items: results in order, little in flight, nothing left behind.

A worker is a fresh interpreter that runs this module and nothing of the caller's main program: it makes no difference
whether that is a console script, a flow or a test, and what the caller has imported (torch) is not imported again. Each
computes with one thread. It ends as soon as its parent is gone, however the parent went.
"""

import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from queue import SimpleQueue
from typing import Any, TypeVar

A = TypeVar("A")
B = TypeVar("B")

_ONE_THREAD = {
    name: "1"
    for name in (
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "RAYON_NUM_THREADS",
        "ARROW_IO_THREADS",
    )
} | {"TOKENIZERS_PARALLELISM": "false"}
_START = "import sys; sys.path[:] = sys.argv[2:]; from training.data.pool import serve; serve(int(sys.argv[1]))"


class WorkerLost(RuntimeError):
    """A worker process ended before its work was done: killed, or it ran out of memory."""


def ordered_map(function: Callable[[A], B], items: Iterable[A], processes: int) -> Generator[B, None, None]:
    """``function`` of every item, in the items' order, computed by up to ``processes`` workers.

    Laws: what is yielded, and the exception that is raised after it, are those of ``map(function, items)``. At most
    ``processes + 1`` items are taken from ``items`` beyond those whose results were handed out. With one process, and
    where there is only one item, all happens in this process.

    ``function`` and the items are pickled: a function stands in a module (not in ``__main__``), or is a partial of such a
    one. Raises WorkerLost where a worker is killed. Whoever may leave the loop early closes the generator
    (``contextlib.closing``), which ends the workers.
    """
    if processes < 1:
        raise ValueError(f"processes is {processes}; at least 1 is needed")
    return _ordered(function, iter(items), processes)


def _ordered(function: Callable[[A], B], items: Iterator[A], processes: int) -> Generator[B, None, None]:
    first = list(_some(items, 2)) if processes > 1 else []
    faulty = bool(first) and isinstance(first[-1], _Fault)
    if len(first) < 2 or faulty:
        for item in first:
            yield function(_value(item))
        for item in () if faulty else items:
            yield function(item)
        return
    pool = _Pool(function, processes)
    try:
        yield from pool.run(_chained(first, items))
    finally:
        pool.close()


@dataclass(frozen=True)
class _Fault:
    """An exception that stands where an item or a result was expected; it is raised when its turn comes."""

    error: BaseException


def _some(items: Iterator[A], count: int) -> Iterator[A | _Fault]:
    """The next ``count`` items; an exception of the iterator is the last of them."""
    for _ in range(count):
        try:
            yield next(items)
        except StopIteration:
            return
        except Exception as error:
            yield _Fault(error)
            return


def _chained(first: list[Any], items: Iterator[A]) -> Iterator[A | _Fault]:
    while first:
        yield first.pop(0)
    while True:
        found = list(_some(items, 1))
        yield from found
        if not found or isinstance(found[0], _Fault):
            return


def _value(outcome: Any) -> Any:
    if isinstance(outcome, _Fault):
        raise outcome.error
    return outcome


# ------------------------------------------------------------------------------------------------ the parent's side


@dataclass
class _Worker:
    """A process, the pipe to it, and the number of the item that it works on (None: it is idle)."""

    process: "subprocess.Popen[bytes]"
    pipe: Connection
    busy: int | None = None


@dataclass
class _Pool:
    """Workers, started one by one as there is work for them."""

    function: Callable[[Any], Any]
    processes: int
    workers: list[_Worker] = field(default_factory=list)

    def run(self, items: Iterator[Any]) -> Iterator[Any]:
        done: dict[int, Any] = {}  # results by number that wait for an earlier one
        ready: deque[tuple[int, Any]] = deque()  # items that wait for a worker
        taken = given = 0
        more = True
        while True:
            while more and taken - given <= self.processes:
                self._dispatch(ready)
                item = next(items, items)  # the iterator itself is no item: it stands for the end
                more = item is not items and not isinstance(item, _Fault)
                if isinstance(item, _Fault):
                    done[taken] = item
                elif more:
                    ready.append((taken, item))
                taken += item is not items
                done.update(self._results(0))
            self._dispatch(ready)
            if given in done:
                yield _value(done.pop(given))
                given += 1
            elif given == taken:
                return
            else:
                done.update(self._results(None))

    def close(self) -> None:
        """End the workers, whatever they do at this moment."""
        for worker in self.workers:
            worker.process.kill()
        for worker in self.workers:
            worker.pipe.close()
            worker.process.wait()
        self.workers.clear()

    def _dispatch(self, ready: "deque[tuple[int, Any]]") -> None:
        while ready and (worker := self._idle()) is not None:
            worker.busy, item = ready.popleft()
            message = pickle.dumps((self.function, item), pickle.HIGHEST_PROTOCOL)
            del item
            try:
                worker.pipe.send_bytes(message)
            except OSError:
                raise self._lost(worker) from None

    def _idle(self) -> _Worker | None:
        for worker in self.workers:
            if worker.busy is None:
                return worker
        if len(self.workers) < self.processes:
            self.workers.append(_start())
            return self.workers[-1]
        return None

    def _results(self, seconds: float | None) -> Iterator[tuple[int, Any]]:
        """What the workers have to tell; waits for the first of it (``None``) or not at all (0)."""
        by_pipe = {worker.pipe: worker for worker in self.workers}
        for pipe in wait(list(by_pipe), seconds):
            worker = by_pipe[pipe]  # type: ignore[index]
            try:
                good, value = pickle.loads(worker.pipe.recv_bytes())
            except (EOFError, OSError):
                raise self._lost(worker) from None
            assert worker.busy is not None, "a worker answered what it was not asked"
            number, worker.busy = worker.busy, None
            yield number, value if good else _Fault(value)

    def _lost(self, worker: _Worker) -> WorkerLost:
        worker.pipe.close()
        code = worker.process.wait()
        how = f"was ended by signal {-code} ({_signal_name(-code)})" if code < 0 else f"ended with code {code}"
        return WorkerLost(
            f"worker process {worker.process.pid} {how} in the middle of its work. Signal 9 mostly means that the machine ran "
            "out of memory: free some, or lower 'threads' in the profile; then run again (what is finished is kept)"
        )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def _start() -> _Worker:
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _START, str(theirs.fileno()), *sys.path],
            env=os.environ | _ONE_THREAD,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            process_group=0,  # Ctrl-C is for the parent, which ends its workers
        )
    return _Worker(process, Connection(ours.detach()))


# ------------------------------------------------------------------------------------------------ the worker's side


def serve(descriptor: int) -> None:
    """Work for the parent at the other end of the socket ``descriptor`` until it is gone."""
    pipe = Connection(descriptor)
    messages: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_listen, args=(pipe, messages), daemon=True).start()
    while True:
        answer = _answer(messages)
        with suppress(OSError):  # the parent is gone, and so are we in a moment
            pipe.send_bytes(answer)


def _listen(pipe: Connection, messages: "SimpleQueue[bytes]") -> None:
    """Take what the parent sends. Its end of the socket closes when it ends, even by a kill: then this process ends too."""
    try:
        while True:
            messages.put(pipe.recv_bytes())
    except (EOFError, OSError):
        os._exit(1)


def _answer(messages: "SimpleQueue[bytes]") -> bytes:
    try:
        function, item = pickle.loads(messages.get())
        return pickle.dumps((True, function(item)), pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        return _pickled(error)


def _pickled(error: Exception) -> bytes:
    try:
        data = pickle.dumps((False, error), pickle.HIGHEST_PROTOCOL)
        pickle.loads(data)  # some exceptions can be packed but not unpacked
        return data
    except Exception:
        told = RuntimeError("".join(traceback.format_exception_only(error)).strip())
        return pickle.dumps((False, told), pickle.HIGHEST_PROTOCOL)
