"""MiniTRPO in the RL Zoo: registration, settings, and what its optimisation samples."""

import argparse
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import pytest
import yaml
from gymnasium.error import DependencyNotInstalled

from sb3_minitrpo import MiniTRPO
from sb3_minitrpo.zoo import NAME, SETTINGS, register, sample_params

rl_zoo3 = pytest.importorskip("rl_zoo3")
optuna = pytest.importorskip("optuna")

ENTRIES = yaml.safe_load(SETTINGS.read_text())
ZOOS_TRPO = Path(rl_zoo3.__file__).parent / "hyperparams" / "trpo.yml"
FOR_THE_ZOO = {"n_envs", "n_timesteps", "normalize"}  # the keys that do not reach the algorithm


@pytest.fixture
def manager():
    register()
    from rl_zoo3.exp_manager import ExperimentManager

    return ExperimentManager


def test_importing_the_module_does_not_import_the_zoo():
    code = "import sys, sb3_minitrpo.zoo; sys.exit('rl_zoo3' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_the_zoo_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "rl_zoo3", None)
    with pytest.raises(ImportError, match=r"sb3_minitrpo\[zoo\]"):
        register()


def test_register_reaches_every_table_of_the_zoo_and_a_second_call_changes_nothing(manager):
    from rl_zoo3 import enjoy, exp_manager, hyperparams_opt, train, utils

    before = manager.__init__
    register()
    assert manager.__init__ is before
    for module in (rl_zoo3, utils, exp_manager, train, enjoy):
        assert module.ALGOS[NAME] is MiniTRPO
    for module in (hyperparams_opt, exp_manager):
        assert module.HYPERPARAMS_SAMPLER[NAME] is sample_params
        assert NAME in module.HYPERPARAMS_CONVERTER


@pytest.mark.parametrize(
    ("algo", "config", "expected"),
    [(NAME, None, SETTINGS), (NAME, "mine.yml", "mine.yml"), ("trpo", None, ZOOS_TRPO), ("trpo", "mine.yml", "mine.yml")],
)
def test_our_settings_are_read_for_minitrpo_unless_others_are_named(manager, tmp_path, algo, config, expected):
    made = manager(argparse.Namespace(), algo, "CartPole-v1", str(tmp_path), config=config)
    assert made.config == str(expected)


@pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning")  # Gymnasium, of -v4
@pytest.mark.parametrize("task", ENTRIES)
def test_every_entry_is_a_legal_call_of_the_constructor(task):
    arguments = {key: value for key, value in ENTRIES[task].items() if key not in FOR_THE_ZOO}
    MiniTRPO(env=make_or_stand_in(task), **arguments)


def make_or_stand_in(task: str) -> gym.Env:
    try:
        return gym.make("Pendulum-v1" if task == "default" else task)
    except (
        DependencyNotInstalled,
        ModuleNotFoundError,
    ):  # Box2D and MuJoCo are optional: the arguments are checked all the same
        return gym.make("Pendulum-v1")


def test_every_task_that_the_zoo_has_for_trpo_has_an_entry():
    zoo = yaml.safe_load(ZOOS_TRPO.read_text())
    assert {task for task in zoo if "Bullet" not in task} <= ENTRIES.keys()


@pytest.mark.parametrize("task", [task for task in ENTRIES if task.endswith("-v4")])
def test_both_versions_of_a_mujoco_task_share_their_settings(task):
    assert ENTRIES[task] == ENTRIES[task.replace("-v4", "-v5")]


@pytest.mark.parametrize("seed", range(5))
def test_a_trial_samples_legal_arguments_and_can_be_loaded_again(manager, seed):
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER

    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed)).ask()
    arguments = sample_params(trial, n_actions=1, n_envs=1, additional_args={})
    MiniTRPO("MlpPolicy", "Pendulum-v1", **arguments)
    assert HYPERPARAMS_CONVERTER[NAME](trial.params) == arguments
    assert {"target_kl", "cg_damping", "line_search_accept_ratio", "ent_coef"} <= arguments.keys()
