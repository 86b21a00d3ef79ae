"""From a settings file and names of algorithms to the runs of a comparison."""

import importlib
import inspect
from collections.abc import Container, Iterable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import yaml
from gymnasium import spaces
from rl_zoo3.utils import get_wrapper_class
from sb3_contrib import TRPO

from comparison.records import RunSpec
from sb3_minitrpo import MiniTRPO

Settings = dict[str, Any]

ALGORITHMS = {
    "minitrpo": "sb3_minitrpo:MiniTRPO",
    "trpo": "sb3_contrib:TRPO",
    "ppo": "stable_baselines3:PPO",
}

# Settings of a task, which all algorithms share; n_envs may differ, since it is part of the size of an update.
TASK_SETTINGS = {
    "n_timesteps",
    "normalize",
    "env_wrapper",
    "vec_env_wrapper",
    "env_kwargs",
    "monitor_kwargs",
    "frame_stack",
    "target_return",
}
# Arguments of constructors that say nothing about what is learned, or that a run sets on its own.
NO_SETTINGS = {"env", "seed", "device", "verbose", "tensorboard_log", "_init_setup_model"}


def read_settings(path: Path) -> Settings:
    """:raises ValueError: if the file is not there or not in the RL Zoo's format"""
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"settings file {path}: {error}") from error
    if not isinstance(settings, dict) or not all(isinstance(section, dict) for section in settings.values()):
        raise ValueError(f"settings file {path}: write sections, `task:` with `name: value` lines below it")
    for label, section in settings.get("algorithms", {}).items():
        check_algorithm_section(label, section, known_tasks=settings.keys() | gym.registry.keys())
    return settings


def check_algorithm_section(label: str, section: Any, known_tasks: Container[str]) -> None:
    """:raises ValueError: for lines that would be passed over"""
    for name, value in section.items() if isinstance(section, dict) else [(label, section)]:
        if name != "class" and not (isinstance(value, dict) and (name == "all_tasks" or name in known_tasks)):
            raise ValueError(
                f"settings of algorithm {label!r}: write `class:`, `all_tasks:` or a task's id instead of {name!r}"
            )


def plan_runs(
    file: Settings,
    algorithms: Iterable[str],
    tasks: Iterable[str],
    seeds: Iterable[int],
    steps: int | None = None,
    eval_episodes: int = 10,
    matched: bool = False,
) -> list[RunSpec]:
    """
    All runs of a comparison, seed by seed, so that the first seeds of all are done before the next begin.

    :param file: what :func:`read_settings` gave
    :param algorithms: labels: ``minitrpo``, ``trpo``, ``ppo``, one of the file, or ``module:Class``
    :param tasks: ids of Gymnasium environments
    :param steps: replaces ``n_timesteps`` of the file
    :param matched: give each MiniTRPO the trust region that sb3-contrib's TRPO has on that task
    :raises ValueError: for names that are not known and settings that an algorithm does not take
    """
    runs = []
    for task, label in product(tasks, algorithms):
        algorithm, settings = settings_of(file, label, task, steps, matched)
        arguments = constructor_arguments(import_class(algorithm), settings)
        name = label.rpartition(":")[2] + ("-matched" if matched and is_minitrpo(algorithm) else "")
        runs.append(RunSpec(name, algorithm, task, 0, eval_episodes, settings, arguments))
    if len({(run.task, run.label) for run in runs}) < len(runs):
        raise ValueError("two of the tasks or of the algorithms have the same name: give each a label of its own")
    return [replace(run, seed=seed) for seed in dict.fromkeys(seeds) for run in runs]


def target_returns(file: Settings) -> dict[str, float]:
    """For tasks whose section has ``target_return``: the return that the report says the time of."""
    return {task: float(section["target_return"]) for task, section in file.items() if "target_return" in section}


def settings_of(file: Settings, label: str, task: str, steps: int | None, matched: bool) -> tuple[str, Settings]:
    """The class of an algorithm, as ``module:Class``, and its settings on a task."""
    algorithm = class_of(file, label)
    settings = task_settings(file, task) | own_settings(file, label, task)
    settings.pop("target_return", None)
    settings["n_timesteps"] = steps or int(float(settings["n_timesteps"]))
    check_settings(algorithm, task, settings)
    if matched and is_minitrpo(algorithm):
        _, contrib = settings_of(file, "trpo", task, steps, matched=False)
        settings |= matched_trust_region(constructor_arguments(TRPO, contrib), action_space(task, settings))
    return algorithm, settings


def class_of(file: Settings, label: str) -> str:
    """:raises ValueError: if the label is neither ours, nor the file's, nor ``module:Class``"""
    section = file.get("algorithms", {}).get(label, {})
    name = section.get("class", label)
    algorithm = ALGORITHMS.get(name, name)
    if ":" not in algorithm:
        known = ", ".join(sorted(ALGORITHMS.keys() | file.get("algorithms", {}).keys()))
        raise ValueError(f"algorithm {label!r}: choose from {known}, or write module:Class")
    return algorithm


def task_settings(file: Settings, task: str) -> Settings:
    """:raises ValueError: if the task is not registered, or has no settings"""
    try:
        gym.spec(task)
    except (gym.error.Error, ImportError) as error:
        raise ValueError(f"task {task!r}: {error}") from error
    settings = file.get(task, file.get("default"))
    if settings is None or "n_timesteps" not in settings:
        raise ValueError(f"task {task!r}: give it a section with n_timesteps in the settings file, or a `default:` section")
    return dict(settings)


def own_settings(file: Settings, label: str, task: str) -> Settings:
    """
    What the file says of one algorithm only.

    :raises ValueError: for a setting that all algorithms must share to be compared
    """
    section = file.get("algorithms", {}).get(label, {})
    settings = section.get("all_tasks", {}) | section.get(task, {})
    if shared := sorted(settings.keys() & TASK_SETTINGS):
        raise ValueError(f"algorithm {label!r}: {', '.join(shared)} must be the same for all: move it to the task's section")
    return settings


def check_settings(algorithm: str, task: str, settings: Settings) -> None:
    """:raises ValueError: if the constructor does not take a setting"""
    parameters = inspect.signature(import_class(algorithm)).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    if unknown := sorted(settings.keys() - parameters.keys() - TASK_SETTINGS - {"n_envs"}):
        raise ValueError(
            f"{algorithm} on {task} takes no {', '.join(unknown)}: if others do, move it to their section under `algorithms:`"
        )


def import_class(algorithm: str) -> type:
    """:raises ValueError: if there is no such class"""
    module, _, name = algorithm.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"algorithm {algorithm!r}: {error}; write module:Class, with the module on PYTHONPATH") from error


def constructor_arguments(algorithm: type, settings: Settings) -> Settings:
    """What the constructor works with, its defaults among them, as JSON has it."""
    parameters = inspect.signature(algorithm).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty and p.name not in NO_SETTINGS}
    given = {name: value for name, value in settings.items() if name not in TASK_SETTINGS | {"n_envs"}}
    return {name: as_json(value) for name, value in (defaults | given).items()}


def as_json(value: Any) -> Any:
    """Classes and functions become their names, which unlike their ``repr`` are the same in every process."""
    if isinstance(value, dict):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return getattr(value, "__qualname__", type(value).__qualname__)


def is_minitrpo(algorithm: str) -> bool:
    return issubclass(import_class(algorithm), MiniTRPO)


def action_space(task: str, settings: Settings) -> spaces.Space:
    wrap = get_wrapper_class(settings) or (lambda env: env)
    env = wrap(gym.make(task, **settings.get("env_kwargs", {})))
    env.close()
    return env.action_space


def matched_trust_region(contrib: Settings, space: spaces.Space) -> Settings:
    """
    sb3-contrib's trust region in the terms of MiniTRPO: δ_joint = d·δ, λ_joint = d·λ.

    :param contrib: the constructor arguments of ``sb3_contrib.TRPO``
    :param space: of actions; d is :func:`averaged_dimensions` of it
    """
    d = averaged_dimensions(space)
    return {"target_kl": d * contrib["target_kl"], "cg_damping": d * contrib["cg_damping"]}


def averaged_dimensions(space: spaces.Space) -> int:
    """Over how many action dimensions sb3-contrib's KL is a mean; of Discrete and MultiDiscrete actions it is the sum."""
    return int(np.prod(space.shape)) if isinstance(space, spaces.Box | spaces.MultiBinary) else 1
