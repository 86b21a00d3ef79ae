"""From a settings file to runs."""

from pathlib import Path

import pytest
import rl_zoo3
import torch as th
import yaml
from gymnasium import spaces
from stable_baselines3.common.distributions import kl_divergence, make_proba_distribution
from torch.distributions import kl_divergence as joint_kl

import compare
from comparison.settings import averaged_dimensions, plan_runs, read_settings, target_returns
from sb3_minitrpo import zoo
from sb3_minitrpo.distributions import as_torch

TASK = "CartPole-v1"
FILE = {
    "default": {"n_timesteps": 1000, "policy": "MlpPolicy"},
    TASK: {"n_timesteps": 500, "policy": "MlpPolicy", "gamma": 0.9, "target_return": 400},
    "algorithms": {
        "wide": {"class": "minitrpo", "all_tasks": {"target_kl": 0.03}, "Pendulum-v1": {"target_kl": 0.06}},
        "trpo": {"Pendulum-v1": {"cg_damping": 0.2}},
    },
}


def plan(*algorithms, file=FILE, tasks=(TASK,), seeds=(0,), **kwargs):
    return plan_runs(file, algorithms, tasks, seeds, **kwargs)


def test_a_run_has_the_settings_of_its_task():
    (run,) = plan("minitrpo")
    assert run.algorithm == "sb3_minitrpo:MiniTRPO"
    assert run.settings == {"n_timesteps": 500, "policy": "MlpPolicy", "gamma": 0.9}
    assert run.arguments["gamma"] == 0.9
    assert run.arguments["n_steps"] == 2048, "the constructor's defaults are part of what a run is"
    assert target_returns(FILE) == {TASK: 400.0}


def test_a_task_that_is_not_listed_has_the_default_settings():
    (run,) = plan("ppo", tasks=["Acrobot-v1"])
    assert run.settings == FILE["default"]


def test_labels_have_settings_of_their_own():
    runs = {(run.label, run.task): run for run in plan("wide", "minitrpo", "trpo", tasks=[TASK, "Pendulum-v1"])}
    assert runs["wide", TASK].algorithm == runs["minitrpo", TASK].algorithm
    assert runs["wide", TASK].arguments["target_kl"] == 0.03
    assert runs["wide", "Pendulum-v1"].arguments["target_kl"] == 0.06
    assert "target_kl" not in runs["minitrpo", TASK].settings
    assert runs["trpo", "Pendulum-v1"].arguments["cg_damping"] == 0.2


def test_seeds_come_one_after_the_other():
    runs = plan("minitrpo", "trpo", seeds=[3, 1])
    assert [(run.label, run.seed) for run in runs] == [("minitrpo", 3), ("trpo", 3), ("minitrpo", 1), ("trpo", 1)]


def test_each_change_makes_another_run():
    (run,) = plan("minitrpo")
    others = [
        *plan("trpo"),
        *plan("minitrpo", seeds=[1]),
        *plan("minitrpo", steps=501),
        *plan("minitrpo", eval_episodes=11),
        *plan("minitrpo", file=FILE | {TASK: FILE[TASK] | {"gamma": 0.91}}),
        *plan("minitrpo", tasks=["Acrobot-v1"]),
    ]
    assert len({run.name, *(other.name for other in others)}) == 1 + len(others)
    assert plan("minitrpo", file=FILE | {TASK: FILE[TASK] | {"target_return": 1}})[0].name == run.name


@pytest.mark.parametrize("task", ["Hopper", "HalfCheetah", "Walker2d", "Swimmer", "Ant"])
def test_tuned_settings_are_those_of_the_zoo_and_of_our_file_for_it(task):
    tuned = read_settings(compare.DEFAULT_SETTINGS.with_name("tuned.yml"))
    ours = yaml.safe_load(zoo.SETTINGS.read_text())[f"{task}-v5"]
    zoos = yaml.safe_load((Path(rl_zoo3.__file__).parent / "hyperparams" / "trpo.yml").read_text())[f"{task}-v4"]
    for label, entry in (("minitrpo", ours), ("trpo", zoos | {"sub_sampling_factor": None})):
        (run,) = plan(label, file=tuned, tasks=[f"{task}-v5"])
        expected = {name: value for name, value in entry.items() if value is not None}
        assert run.settings | {"n_timesteps": 0} == expected | {"n_timesteps": 0}


def test_a_new_default_of_the_constructor_makes_another_run(monkeypatch):
    from sb3_minitrpo import MiniTRPO

    (before,) = plan("minitrpo")
    defaults = MiniTRPO.__init__.__defaults__
    assert 0.95 in defaults
    monkeypatch.setattr(MiniTRPO.__init__, "__defaults__", tuple(0.9 if value == 0.95 else value for value in defaults))
    (after,) = plan("minitrpo")
    assert before.name != after.name


@pytest.mark.parametrize(
    "space",
    [spaces.Box(-1, 1, (3,)), spaces.Discrete(4), spaces.MultiDiscrete([2, 5, 3]), spaces.MultiBinary(6)],
    ids=lambda space: type(space).__name__,
)
def test_contribs_kl_is_the_joint_one_over_the_averaged_dimensions(space):
    """sb3-contrib takes ``kl_divergence(...).mean()`` of Stable-Baselines3's distributions."""
    old, new = (random_distribution(space, seed) for seed in (0, 1))
    joint = joint_kl(as_torch(old), as_torch(new)).mean()
    assert float(joint) == pytest.approx(averaged_dimensions(space) * float(kl_divergence(old, new).mean()), rel=1e-5)


def random_distribution(space, seed):
    th.manual_seed(seed)
    dist = make_proba_distribution(space)
    if isinstance(space, spaces.Box):
        return dist.proba_distribution(th.randn(7, 3), 0.1 * th.randn(3))
    n_logits = {spaces.Discrete: 4, spaces.MultiDiscrete: 10, spaces.MultiBinary: 6}[type(space)]
    return dist.proba_distribution(th.randn(7, n_logits))


def test_matched_gives_minitrpo_the_trust_region_of_contrib():
    pytest.importorskip("mujoco")
    file = FILE | {"algorithms": {"trpo": {"Reacher-v5": {"target_kl": 0.04}}}}  # with 2 action dimensions
    mini, contrib = plan("minitrpo", "trpo", file=file, tasks=["Reacher-v5"], matched=True)
    assert (mini.label, contrib.label) == ("minitrpo-matched", "trpo")
    assert (contrib.arguments["target_kl"], contrib.arguments["cg_damping"]) == (0.04, 0.1)
    assert (mini.arguments["target_kl"], mini.arguments["cg_damping"]) == (0.08, 0.2)


def test_matched_leaves_discrete_actions_and_other_algorithms_alone():
    mini, other = plan("minitrpo", "ppo", matched=True)
    assert (mini.arguments["target_kl"], mini.arguments["cg_damping"]) == (0.01, 0.1)
    assert other == plan("ppo")[0]


@pytest.mark.parametrize(
    ("algorithms", "changes", "said"),
    [
        (["reinforce"], {}, "'reinforce': choose from minitrpo, ppo, trpo, wide, or write module:Class"),
        (["nowhere:Thing"], {}, "No module named 'nowhere'"),
        (["sb3_minitrpo:Thing"], {}, "no attribute 'Thing'"),
        (["minitrpo"], {"tasks": ["NoTask-v0"]}, "'NoTask-v0'"),
        (["minitrpo"], {"file": {}}, "give it a section with n_timesteps"),
        (["ppo"], {"file": {"default": {"n_timesteps": 1, "cg_damping": 1}}}, "takes no cg_damping: if others do, move it"),
        (
            ["trpo"],
            {"file": FILE | {"algorithms": {"trpo": {TASK: {"normalize": True}}}}},
            "normalize must be the same for all: move it to the task's section",
        ),
        (["ppo", "stable_baselines3:PPO", "sb3_contrib:TRPO", "ppo"], {}, "the same name"),
    ],
)
def test_what_cannot_be_planned_is_a_clear_error(algorithms, changes, said):
    with pytest.raises(ValueError, match=said):
        plan(*algorithms, **changes)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("just words", "write sections"),
        ("CartPole-v1: 3", "write sections"),
        ("a: {b", "settings file"),
        ("algorithms: {trpo: {CartPol-v1: {gamma: 0.9}}}", "task's id instead of 'CartPol-v1'"),
        ("algorithms: {trpo: {target_kl: 0.9}}", "instead of 'target_kl'"),
        ("algorithms: {trpo: 3}", "instead of 'trpo'"),
    ],
)
def test_a_file_in_another_format_is_a_clear_error(tmp_path, text, said):
    path = tmp_path / "settings.yml"
    path.write_text(text)
    with pytest.raises(ValueError, match=said):
        read_settings(path)


def test_a_file_that_is_not_there_is_a_clear_error(tmp_path):
    with pytest.raises(ValueError, match="No such file"):
        read_settings(tmp_path / "none.yml")


def test_the_settings_file_of_the_project_plans_all_its_tasks():
    file = read_settings(compare.DEFAULT_SETTINGS)
    tasks = [name for name in file if name not in ("default", "algorithms")]
    runs = plan("minitrpo", "trpo", "ppo", file=file, tasks=tasks)
    assert len(tasks) >= 8
    assert all(run.settings.keys() <= {"n_timesteps", "policy", "normalize"} for run in runs), "out of the box"
