"""Averages over ranks and agreement between them, over a real gloo group."""

import os
import signal
import time
from collections import OrderedDict
from pathlib import Path

import pytest
import torch as th
import torch.distributed as dist

from sb3_minitrpo import distributed
from sb3_minitrpo.distributed import Moments, RankError, moments_of
from sb3_minitrpo.trust_region.averages import average_here
from tests.ranks import Ranks

THREADS = Path("/proc/self/task")


def part_of(data: th.Tensor) -> th.Tensor:
    """Ranks hold unequal amounts: two fifths are on rank 0."""
    split = len(data) * 2 // 5
    return data[:split] if dist.get_rank() == 0 else data[split:]


def averages(data):
    mine = part_of(data)
    return distributed.average(mine.mean(dim=0), len(mine))


@pytest.mark.parametrize("dtype", [th.float32, th.float64])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (20011,)])
def test_the_average_of_unequal_parts_is_the_mean_of_the_whole_with_the_same_bits_on_all(ranks, shape, dtype):
    data = th.randn(50, *shape, dtype=dtype)
    first, second = ranks.run(averages, data)
    assert first.dtype == dtype
    assert first.shape == shape
    assert th.equal(first, second)
    assert th.allclose(first, data.mean(dim=0), rtol=1e-5 if dtype == th.float32 else 1e-12, atol=1e-7)


def test_the_bits_are_the_same_on_more_than_two_ranks():
    with Ranks(3) as three:
        for size in (1, 5, 4097):
            first, second, third = three.run(averages, th.randn(50, size))
            assert th.equal(first, second)
            assert th.equal(first, third)


def pooled_moments(data):
    return distributed.pooled(moments_of(part_of(data)))


def test_pooled_moments_are_those_of_the_whole(ranks):
    data = th.randn(1000, 4, dtype=th.float64) * th.tensor([1e-3, 1.0, 1e3, 1.0]) + th.tensor([0.0, 1e6, 1.0, -5.0])
    first, second = ranks.run(pooled_moments, data)
    assert all(th.equal(a, b) for a, b in zip(first, second, strict=True))
    assert first.n.tolist() == [1000.0] * 4
    assert th.allclose(first.mean, data.mean(dim=0), rtol=1e-12)
    assert th.allclose(first.var, data.var(dim=0, unbiased=False), rtol=1e-9)


def moments_of_rank_1_alone():
    here = float(dist.get_rank())
    return distributed.pooled(Moments(*th.tensor([[5.0 * here, 0.0], [3.0 * here, 0.0], [2.0 * here, 0.0]]).double()))


def test_a_rank_without_data_adds_nothing_to_moments(ranks):
    for moments in ranks.run(moments_of_rank_1_alone):
        assert [part.tolist() for part in moments] == [[5.0, 0.0], [3.0, 0.0], [2.0, 0.0]]


def fail_on_rank_1():
    with distributed.together():
        if dist.get_rank() == 1:
            raise ValueError("no such thing")
    return "went on"


def test_an_error_of_one_rank_is_an_error_of_all_and_the_group_lives_on(ranks):
    first, second = ranks.run(fail_on_rank_1)
    assert type(first) is RankError
    assert str(first) == "rank 1 of 2 failed: ValueError: no such thing"
    assert type(second) is ValueError
    assert ranks.run(distributed.n_ranks) == [2, 2]
    assert all(isinstance(answer, th.Tensor) for answer in ranks.run(averages, th.ones(10, 1)))


def state_that_differs(where):
    state = {"weights": th.arange(6.0).reshape(2, 3), "optimizer": [{"step": th.tensor(3.0), "lr": 0.1}]}
    if dist.get_rank() == 1 and where == "weights":
        state["weights"][1, 2] += 1e-6
    if dist.get_rank() == 1 and where == "optimizer":
        state["optimizer"][0]["lr"] = 0.2
    distributed.require_same(**state)


@pytest.mark.parametrize("where", ["weights", "optimizer"])
def test_a_difference_is_an_error_that_names_what_and_whose_it_is(ranks, where):
    assert ranks.run(state_that_differs, "nowhere") == [None, None]
    for answer in ranks.run(state_that_differs, where):
        assert type(answer) is RankError
        assert str(answer).startswith(f"{where} of rank 1 differ")


def test_a_checksum_depends_on_every_bit_and_on_names():
    state = OrderedDict(a=th.randn(3, 4), b=[{"c": th.tensor(2)}, True])
    usual = distributed.checksum(state)
    assert distributed.checksum(dict(state)) == usual
    assert 0 <= usual < 2**62
    for i in range(12):
        changed = state["a"].clone()
        changed.view(th.int32).view(-1)[i] ^= 1
        assert distributed.checksum({**state, "a": changed}) != usual
    assert distributed.checksum({"b": state["a"], "a": state["b"]}) != usual
    assert distributed.checksum({**state, "b": [{"c": th.tensor(2)}, False]}) != usual


def test_without_a_group_nothing_is_done(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a collective operation without a group")

    for name in ("all_reduce", "all_gather_object", "broadcast_object_list"):
        monkeypatch.setattr(dist, name, refuse)
    value, moments = th.randn(3), moments_of(th.randn(4, 2))
    assert not distributed.active()
    assert (distributed.rank(), distributed.n_ranks()) == (0, 1)
    assert distributed.average(value, 7) is value
    assert distributed.averaging() is average_here
    assert distributed.pooled(moments) is moments
    assert distributed.gathered(value) == [value]
    assert distributed.from_rank_0(value) is value
    assert distributed.row_of_each([3, 4]).tolist() == [[3, 4]]
    distributed.require_same(weights=value)
    with pytest.raises(KeyError), distributed.together():
        raise KeyError


def leave_or_reduce(how):
    if dist.get_rank() == 1 and how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if dist.get_rank() == 1 and how == "silent":
        time.sleep(4.0)
        return None
    start = time.monotonic()
    try:
        distributed.average(th.ones(3), 1)
    except RankError as error:
        return str(error), time.monotonic() - start
    return None


@pytest.mark.parametrize("how", ["killed", "silent"])
def test_a_rank_that_is_gone_or_silent_is_an_error_of_the_others_within_the_timeout(how):
    with Ranks(2, timeout=2.0) as pair:
        (message, seconds), _ = pair.run(leave_or_reduce, how)
    assert "rank 0 of 2 does not reach the others" in message
    assert seconds < 3.5


def policies_of_threads():
    distributed.calm_gloo()
    threads = [(path.read_text(), int(path.parent.name)) for path in THREADS.glob("*/comm")]
    return [("gloo" in name, os.sched_getscheduler(thread)) for name, thread in threads]


@pytest.mark.skipif(not THREADS.exists(), reason="threads have no names here")
def test_the_threads_of_gloo_displace_nobody(ranks):
    for policies in ranks.run(policies_of_threads):
        assert {policy for of_gloo, policy in policies if of_gloo} == {os.SCHED_BATCH}
        assert {policy for of_gloo, policy in policies if not of_gloo} == {os.SCHED_OTHER}
