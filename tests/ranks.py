"""Several ranks of a real gloo group on this machine, which tests send functions to."""

import os
import tempfile
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch as th
import torch.distributed as dist

START_TIMEOUT = ANSWER_TIMEOUT = 60.0  # seconds


class Ranks:
    """
    Processes that form a group until the end of a ``with`` block.

    :param n: how many
    :param timeout: of the process group, in seconds
    """

    def __init__(self, n: int = 2, timeout: float = 30.0):
        self.n, self.timeout = n, timeout

    def __enter__(self) -> "Ranks":
        self.folder = tempfile.TemporaryDirectory()
        context = get_context("spawn")
        self.processes, self.pipes = [], []
        for rank in range(self.n):
            ours, theirs = context.Pipe()
            store = Path(self.folder.name) / "store"
            process = context.Process(target=serve, args=(rank, self.n, store, self.timeout, theirs), daemon=True)
            process.start()
            theirs.close()  # so that the end of the process is the end of the pipe
            self.processes.append(process)
            self.pipes.append(ours)
        self._answers(START_TIMEOUT)
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.join(10.0)
            if process.is_alive():
                process.kill()
        self.folder.cleanup()

    def run(self, function: Callable, *args: Any, **kwargs: Any) -> list[Any]:
        """
        Call a function of a module on every rank.

        :return: what it returned or raised on each; ``EOFError`` where the process has ended
        """
        for pipe in self.pipes:
            pipe.send(partial(function, *args, **kwargs))
        return self._answers(ANSWER_TIMEOUT)

    def _answers(self, timeout: float) -> list[Any]:
        answers = []
        for rank, pipe in enumerate(self.pipes):
            if not pipe.poll(timeout):
                raise TimeoutError(f"rank {rank} has not answered within {timeout} s")
            try:
                answers.append(pipe.recv())
            except EOFError as error:
                answers.append(error)
        return answers


def serve(rank: int, n: int, store: Path, timeout: float, pipe: Connection) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    th.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{store}", timedelta(seconds=timeout), n, rank)
    pipe.send(rank)
    while True:
        try:
            call = pipe.recv()
        except EOFError:
            break
        try:
            pipe.send(call())
        except Exception as error:
            pipe.send(error)
    dist.destroy_process_group()
