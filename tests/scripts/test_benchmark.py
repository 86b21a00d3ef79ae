"""scripts/benchmark.py: what its numbers mean, and the command as its users call it. No times are tested."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

import benchmark
from benchmarking import growth, learning, plan, problems, summary
from benchmarking.jobs import surroundings
from benchmarking.report import number, with_quartiles
from benchmarking.sections import read_section
from benchmarking.statistics import geometric_mean, ratio, spread
from sb3_minitrpo import MiniTRPO

# sb3-contrib logs the mean of no losses where there is no critic
pytestmark = pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:invalid value encountered in scalar divide")

SCRIPT = Path(benchmark.__file__)
MIB = 2**20


def test_spread_is_median_and_quartiles():
    assert spread([5.0, 1.0, 4.0, 2.0, 3.0]) == (3.0, 2.0, 4.0)
    assert spread([7.0]) == (7.0, 7.0, 7.0)


def test_ratios_are_paired_turn_by_turn():
    # 8/4, 6/1, 3/1: their median is 3, while the medians' quotient would be 6
    assert ratio([8.0, 6.0, 3.0], [4.0, 1.0, 1.0]) == (3.0, 2.5, 4.5)
    with pytest.raises(ValueError, match="argument 2 is longer"):
        ratio([1.0], [1.0, 2.0])


def test_the_geometric_mean_of_twice_and_half_is_one():
    assert geometric_mean([2.0, 0.5]) == pytest.approx(1.0)
    assert geometric_mean([2.0, 4.0, 8.0]) == pytest.approx(4.0)


def cell(name="CartPole-v1", slow=1.0):
    """Turns of which the quotients are known: contrib's parts are 2, 4, 6, 8 or 10 times ours."""
    ours = {"learn": [10.0, 10.0], "collection": [6.0, 6.0], "train": [3.0, 3.0], "actor": [1.0, 1.0]}
    theirs = {"learn": [50.0, 70.0], "collection": [24.0, 24.0], "train": [18.0, 18.0], "actor": [2.0, 2.0]}
    theirs = {part: [slow * value for value in values] for part, values in theirs.items()}
    result = {"seconds": {"sb3-contrib": theirs, "MiniTRPO": ours}, "stepping": [2.0, 2.0], "busy": 1.0}
    return {"name": name, "result": result}


def test_the_critic_is_what_train_takes_longer_than_the_actor():
    one = summary.learning(cell())
    assert one.seconds["sb3-contrib"]["critic"] == 16.0
    assert one.seconds["MiniTRPO"]["critic"] == 2.0
    medians = {part: ratio.median for part, ratio in one.ratios["MiniTRPO"].items()}
    assert medians == {"learn": 6.0, "collection": 4.0, "train": 6.0, "actor": 2.0, "critic": 8.0}


def test_the_floor_is_stepping_plus_our_update():
    one = summary.learning(cell())
    assert one.floor == 5.0
    assert one.above_floor.median == 2.0
    assert one.above_stepping.median == 3.0


def test_the_mean_ratio_is_that_of_the_default_tasks_or_none_at_all():
    *some, last = [summary.learning(cell(task, slow)) for task, slow in zip(plan.TASKS, (1, 1, 4, 4), strict=True)]
    other = summary.learning(cell("another training", slow=100))
    assert summary.mean_ratios([*some, last, other], "MiniTRPO")["actor"] == pytest.approx(4.0)
    assert summary.mean_ratios([*some, other], "MiniTRPO") == {}


def test_sizes_are_paired_and_those_without_a_partner_left_out():
    def update(contender, samples, seconds):
        arguments = {"contender": contender, "net_arch": [64, 64], "actions": 6, "samples": samples}
        result = {"actor": [seconds], "train": [2 * seconds], "memory": seconds, "products": 7}
        return {"name": "", "arguments": arguments, "result": result}

    (size,) = summary.growths([update("sb3-contrib", 10, 3.0), update("sb3-contrib", 20, 9.0), update("MiniTRPO", 10, 1.0)])
    assert (size.network, size.actions, size.samples, size.products) == ("64×64", 6, 10, 7)
    assert size.train == {"sb3-contrib": 6.0, "MiniTRPO": 2.0}


def turn(number, ranks, seconds, reducing=0.0):
    reductions = {"latency": 1e-3, "bandwidth": 1e9} if ranks > 1 else {}
    result = {
        "steps": 100 * ranks,
        "seconds": [seconds, seconds, 99.0],
        "rollout": [0.5, 0.5, 0.5],
        "calls": [100, 100, 100],
        "bytes": [1_000_000, 1_000_000, 1_000_000],
        "reducing": [reducing, reducing, 99.0],
    }
    return {"name": f"turn {number}, {ranks} ranks", "arguments": {"ranks": ranks}, "result": result | reductions}


def test_speed_up_is_of_equal_work_for_each_rank():
    cells = [turn(1, 1, 1.0), turn(1, 2, 1.25, 0.25), turn(2, 1, 2.0), turn(2, 2, 2.0, 1.0), turn(3, 1, 7.0)]
    alone, pair = summary.scalings(cells)  # the third turn has no second half
    assert (alone.ranks, alone.seconds, alone.speed_up.median, alone.latency) == (1, 1.5, 1.0, None)
    assert (pair.ranks, pair.seconds, pair.reducing, pair.calls) == (2, 1.625, 0.625, 100)
    assert pair.speed_up == pytest.approx((1.8, 1.7, 1.9))  # of 2 · 1 / 1.25 and 2 · 2 / 2
    assert pair.steps_per_second == 200 / 1.625


def test_the_model_of_many_ranks():
    _, pair = summary.scalings([turn(1, 1, 1.0), turn(1, 2, 1.25, 0.25)])
    # 1 s of work, 100 reductions of 3 times 1 ms, and 6/4 of 1 MB at 1 GB/s
    assert summary.modelled_seconds(pair, 4, 1e-3) == pytest.approx(1.0 + 0.3 + 0.0015)
    assert summary.modelled_seconds(pair, 2, 0.0025) == pytest.approx(1.0 + 0.25 + 0.001)


def test_numbers_have_three_digits():
    assert [number(x) for x in (0.012345, 1.0, 12.345, 99.96, 1234.5)] == ["0.0123", "1.00", "12.3", "100", "1234"]
    assert with_quartiles(spread([1.0, 2.0, 3.0])) == "2.00 [1.50, 2.50]"


def test_threads_are_limited_or_left_to_torch():
    mine = {"OMP_NUM_THREADS": "7", "HOME": "here"}
    assert surroundings(mine, 2)["OMP_NUM_THREADS"] == surroundings(mine, 2)["OPENBLAS_NUM_THREADS"] == "2"
    assert "OMP_NUM_THREADS" not in surroundings(mine, None)
    assert surroundings(mine, None)["HOME"] == "here"


def test_both_solve_the_same_problem():
    assert problems.joint_terms(spaces.Box(-1, 1, (6,)), {"target_kl": 0.04}) == {
        "target_kl": pytest.approx(0.24),
        "cg_damping": pytest.approx(0.6),
    }
    assert problems.joint_terms(spaces.Discrete(6), {}) == {"target_kl": 0.01, "cg_damping": 0.1}


def test_every_training_of_the_plan_is_known():
    jobs = [job for section in plan.SECTIONS.values() for job in section(plan.Effort())]
    assert {job.arguments["case"] for job in jobs if job.function == "benchmarking.learning:measure"} == set(problems.CASES)
    assert set(plan.CONTENDERS) <= set(problems.CONTENDERS)
    assert len({job.name for job in jobs}) == len(jobs)


@pytest.fixture(params=["CartPole-v1", "Pendulum-v1"])
def pair(request):
    arguments = {"n_steps": 64, "batch_size": 32}
    case = problems.CASES[request.param]
    return [problems.build(name, case.policy, case.make_env(), arguments) for name in plan.CONTENDERS]


def test_contenders_begin_with_the_same_weights(pair):
    contrib, ours = (model.policy.state_dict() for model in pair)
    assert isinstance(pair[1], MiniTRPO)
    assert contrib.keys() == ours.keys()
    assert all(th.equal(contrib[name], ours[name]) for name in contrib)


def test_the_floor_goes_through_the_states_of_the_rollout(pair):
    for model in pair:
        env = learning.environment(model)
        learning.iteration(model, learning.weights_of(model), seed=3)
        seen = []
        step = env.step
        env.step = lambda action, seen=seen, step=step: seen.append(step(action))
        learning.seconds_of_stepping(env, learning.rollout_actions(model), seed=3)
        np.testing.assert_array_equal(np.concatenate([obs for obs, *_ in seen[:-1]]), model.rollout_buffer.observations[1:])


def test_timing_the_actor_changes_nothing(pair):
    for model in pair:
        start = learning.weights_of(model)
        learning.iteration(model, start, seed=1)
        measured, _ = learning.weights_of(model)
        learning.load_weights(model, start)
        learning.seed_all(learning.environment(model), 1)
        assert model.n_critic_updates == 10
        plain = model.learn(64).policy.state_dict()
        assert all(th.equal(measured[name], plain[name]) for name in plain)
        assert not {"train", "collect_rollouts"} & set(vars(model)), "no stopwatch is left"


@pytest.mark.parametrize("net_arch", [[8], None], ids=["MlpPolicy", "CnnPolicy"])
def test_both_update_from_the_same_noise(net_arch):
    buffers = [growth.with_noise(name, 32, net_arch, 3, "cpu").rollout_buffer for name in plan.CONTENDERS]
    for field in ("observations", "actions", "values", "log_probs", "advantages", "returns"):
        theirs, ours = (getattr(buffer, field) for buffer in buffers)
        np.testing.assert_allclose(theirs, ours, err_msg=field)
        assert ours.std() > 0


def test_memory_is_what_a_process_grows_by():
    held = [np.ones(400 * MIB, dtype=np.uint8)]  # more than was held at any time before
    before = growth.peak_memory("cpu")
    held.append(np.ones(100 * MIB, dtype=np.uint8))
    assert growth.peak_memory("cpu") - before == pytest.approx(100, abs=10)
    held.clear()
    assert growth.peak_memory("cpu") - before == pytest.approx(100, abs=10), "it stays when the memory is given back"


def test_a_benchmark_from_the_command_line(tmp_path):
    words = [sys.executable, str(SCRIPT), "--out", str(tmp_path)]
    small = ["--quick", "--repetitions", "1", "--n-steps", "64", "--only", "CartPole-v1", "64×64*"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = subprocess.run([*words, *small], capture_output=True, text=True, env=environment, check=True)
    assert run.stdout.split() == [str(tmp_path / "report.md")]
    assert "100%" in run.stderr
    assert " left" in run.stderr

    learn = read_section(tmp_path / "learn.json")
    assert learn.missing == []
    assert "--quick" in learn.command
    ((result, provenance),) = [(cell["result"], cell["provenance"]) for cell in learn.cells]
    assert all(len(result["seconds"][name]["learn"]) == 1 for name in plan.CONTENDERS)
    assert provenance["machine"]["torch_threads"] == 1
    assert len(read_section(tmp_path / "growth.json").cells) == 2
    assert (tmp_path / "learn.png").stat().st_size > 10_000

    report = (tmp_path / "report.md").read_text()
    (tmp_path / "report.md").unlink()
    assert benchmark.main(["--report-only", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "report.md").read_text() == report
    assert "| CartPole-v1 | MiniTRPO |" in report
    assert "| 64×64 | 6 | 2,048 |" in report
    assert provenance["versions"]["torch"] in report


def test_one_and_two_processes_from_the_command_line(tmp_path):
    assert benchmark.main(["--sections", "scaling", "--quick", "--n-steps", "64", "--out", str(tmp_path)]) == 0
    alone, pair = summary.scalings(read_section(tmp_path / "scaling.json").cells)
    assert (alone.ranks, alone.calls, pair.ranks) == (1, 0, 2)
    assert pair.calls > 20
    assert pair.bytes > 1e6
    assert 0 < pair.reducing < pair.seconds
    report = (tmp_path / "report.md").read_text()
    assert "| 1 | " in report
    assert "| 512 | " in report


def test_what_crashes_is_named_and_the_rest_is_measured(tmp_path, monkeypatch, capfd):
    good = plan.learn_jobs(plan.QUICK._replace(repetitions=1, n_steps=32))[0]
    bad = good._replace(name="bad", arguments=good.arguments | {"case": "NoTask-v0"})
    monkeypatch.setitem(plan.SECTIONS, "learn", lambda effort: [bad, good])
    assert benchmark.main(["--sections", "learn", "--out", str(tmp_path)]) == 1
    assert "KeyError: 'NoTask-v0'" in capfd.readouterr().err
    section = json.loads((tmp_path / "learn.json").read_text())
    assert (section["missing"], [cell["name"] for cell in section["cells"]]) == (["bad"], ["CartPole-v1"])
    assert "missing in learn: bad" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sections", "speed"], "invalid choice: 'speed'"),
        (["--repetitions", "0"], "whole number of at least 1"),
        (["--only", "NoTask*"], "none of the measurements is left"),
        (["--sections", "growth", "--max-batch", "1"], "none of the measurements is left"),
        (["--report-only"], "holds no measurements"),
        pytest.param(
            ["--device", "cuda"],
            "torch finds no GPU",
            marks=pytest.mark.skipif(th.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_wrong_arguments_are_clear_errors(tmp_path, capsys, arguments, said):
    with pytest.raises(SystemExit) as end:
        benchmark.main(["--out", str(tmp_path), *arguments])
    assert end.value.code == 2
    assert said in capsys.readouterr().err
    assert not any(tmp_path.iterdir()), "nothing was begun"
