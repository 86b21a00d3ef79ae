"""
Several processes as one: averages over the data of all of them, and agreement on how to go on.

A process of a ``torch.distributed`` group (a *rank*) holds a part of the data. The functions here are collective: every
rank calls them, in the same order, and comes back with the same bits. Where no process group was initialized each of them
is the identity; :func:`active` decides that, for all of them.
"""

import atexit
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch as th
import torch.distributed as dist

from sb3_minitrpo.trust_region.averages import Average, average_here

T = TypeVar("T")


class RankError(RuntimeError):
    """Another rank has failed, is gone, or is not in step."""


def active() -> bool:
    """Whether this process is one of a group, be it the only one."""
    return dist.is_available() and dist.is_initialized()


@contextmanager
def process_group(timeout: timedelta) -> Iterator[None]:
    """
    The group that torchrun has prepared, for the length of a block; none, if this process was not started by torchrun.

    :param timeout: how long a rank waits for another before that is an error
    """
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        yield
        return
    store, own_rank, size = next(dist.rendezvous("env://", timeout=timeout))
    # Without a rendezvous backend, torchrun keeps the store over a restart, with the addresses of processes that are gone
    store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT')}", store)
    dist.init_process_group(store=store, rank=own_rank, world_size=size, timeout=timeout)
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if active() else 0


def n_ranks() -> int:
    return dist.get_world_size() if active() else 1


def average(mean: th.Tensor, n: int) -> th.Tensor:
    """
    The mean over all data, Σ_r n_r m_r / Σ_r n_r, by one reduction.

    :param mean: m_r, the mean over the data of this rank, of any shape
    :param n: n_r, how many they are
    """
    if not active():
        return mean
    sums = reduced(th.cat([mean.reshape(-1), mean.new_ones(1)]).mul_(n))
    return sums[:-1].div_(sums[-1]).reshape(mean.shape)


def averaging() -> Average:
    """:func:`average` in a group, and else what tells a caller that there is nothing to lay out flat for it."""
    return average if active() else average_here


class Moments(NamedTuple):
    """Number, mean and variance (divided by the number) of samples of ``k`` quantities, each of shape ``(k,)``."""

    n: th.Tensor
    mean: th.Tensor
    var: th.Tensor


def moments_of(samples: th.Tensor) -> Moments:
    """
    :param samples: shape ``(n, k)``
    """
    mean = samples.mean(dim=0)
    return Moments(th.full_like(mean, len(samples)), mean, (samples - mean).square().mean(dim=0))


def pooled(moments: Moments) -> Moments:
    """
    The moments of the data of all ranks, by two reductions:

        N = Σ n_r,   M = Σ n_r m_r / N,   V = Σ n_r (v_r + (m_r − M)²) / N.

    Source: Chan, Golub & LeVeque (1983), "Algorithms for computing the sample variance". Where there are no data at all,
    M and V are zero.

    :param moments: n_r, m_r and v_r of this rank, in float64
    """
    if not active():
        return moments
    n, total = reduced(th.stack([moments.n, moments.n * moments.mean]))
    some = n.clamp(min=1.0)
    mean = total / some
    squares = reduced(moments.n * (moments.var + (moments.mean - mean).square()))
    return Moments(n, mean, squares / some)


def reduced(values: th.Tensor) -> th.Tensor:
    """The sum over all ranks of tensors of one shape, which may be written into."""
    there = values.to(_device(values))
    with connected():
        dist.all_reduce(there)
    return there.to(values.device)


def row_of_each(row: list[int]) -> th.Tensor:
    """
    The numbers of all ranks, by one reduction.

    :param row: ``k`` numbers
    :return: shape ``(n_ranks, k)``
    """
    rows = th.zeros(n_ranks(), len(row), dtype=th.int64)
    rows[rank()] = th.tensor(row)
    return reduced(rows) if active() else rows


def _device(values: th.Tensor) -> th.device:
    """Where the group can reduce: gloo on a CPU, nccl on the current GPU."""
    backends = dist.get_backend_config()  # such as "cpu:gloo,cuda:nccl"
    return values.device if f"{values.device.type}:" in backends else th.device(backends.split(":")[0])


def gathered(mine: T) -> list[T]:
    """What each rank has, in the order of ranks."""
    if not active():
        return [mine]
    everyones: list[Any] = [None] * n_ranks()
    with connected():
        dist.all_gather_object(everyones, mine)
    return everyones


def from_rank_0(mine: T) -> T:
    """What rank 0 has."""
    if not active():
        return mine
    message: list[Any] = [mine]
    with connected():
        dist.broadcast_object_list(message, src=0)
    return mine if rank() == 0 else message[0]


@contextmanager
def connected() -> Iterator[None]:
    """Say what it means that a collective operation failed. It takes all ranks, so this is rarely where the error is."""
    leave_in_peace()
    try:
        yield
    except RuntimeError as error:
        raise RankError(
            f"rank {rank()} of {n_ranks()} does not reach the others: one of them has failed, was killed, or did not "
            "answer within the timeout of the process group. The first error that another rank printed says why"
        ) from error


@cache
def leave_in_peace() -> None:
    """
    At the end of this process, let threads of gloo release the tensors of the last reductions.

    They need the interpreter's lock for it, and abort the process if they come to ask for it when it is already shutting
    down (seen with torch 2.13 in one of three runs; pull request 179291 of PyTorch tells of it).
    """
    atexit.register(time.sleep, 0.2)


def calm_gloo() -> None:
    """
    Let the threads of gloo take their turn behind the others.

    One of them watches the sockets, and where it finds a lock taken, it tries again without a pause. With no more cores than
    ranks it thereby keeps the thread that holds the lock from its core until the scheduler steps in, some milliseconds for
    each such reduction. Batch threads have the same share of a core, but displace nobody when they wake up. Only Linux knows
    them.
    """
    for name in Path("/proc/self/task").glob("*/comm"):
        with suppress(OSError):  # threads end, and a container may forbid it
            if "gloo" in name.read_text():
                os.sched_setscheduler(int(name.parent.name), os.SCHED_BATCH, os.sched_param(0))


@contextmanager
def together() -> Iterator[None]:
    """
    Run a block that reduces nothing on every rank; an error on one of them is an error on all.

    :raises RankError: where another rank failed, with its number and its error; the rank that failed raises its own
    """
    if not active():
        yield
        return
    own: Exception | None = None
    try:
        yield
    except RankError:  # the others know, or are gone
        raise
    except Exception as error:
        own = error
    if not row_of_each([own is not None]).any():
        return
    errors = gathered(None if own is None else f"{type(own).__name__}: {own}")
    if own is not None:
        raise own
    raise RankError("; ".join(f"rank {i} of {n_ranks()} failed: {error}" for i, error in enumerate(errors) if error))


def require_same(**states: Any) -> None:
    """
    Compare what must be the same on every rank, by a checksum of each.

    :param states: named tensors, state dictionaries, lists, …
    :raises RankError: on all ranks, naming what differs and the ranks that differ from most of the others (or from rank 0)
    """
    if not active():
        return
    checksums = row_of_each([checksum(state) for state in states.values()])
    differing = []
    for name, column in zip(states, checksums.T.tolist(), strict=True):
        usual = Counter(column).most_common(1)[0][0]  # of two that are as common, the one of the lower rank
        odd = [str(i) for i, value in enumerate(column) if value != usual]
        if odd:
            differing.append(f"{name} of rank {', '.join(odd)}")
    if differing:
        raise RankError(
            f"{' and '.join(differing)} differ from those of the other ranks. They are changed by the update alone: look for "
            "a callback, a schedule or a setting that is not the same on every rank, and for ranks on unlike processors"
        )


def checksum(state: Any) -> int:
    """62 bits that depend on every bit of every tensor and plain value in a state dictionary or a list, however nested."""
    digest = blake2b(digest_size=8)

    def add(part: Any) -> None:
        if isinstance(part, Mapping):
            for key, value in part.items():
                digest.update(str(key).encode())
                add(value)
        elif isinstance(part, list | tuple):
            for value in part:
                add(value)
        elif isinstance(part, th.Tensor):
            digest.update(part.detach().cpu().reshape(-1).view(th.uint8).numpy().data)
        elif part is None or isinstance(part, bool | int | float | str):
            digest.update(repr(part).encode())

    add(state)
    return int.from_bytes(digest.digest(), "big") >> 2
