"""
MiniTRPO in the RL Zoo, as its algorithm ``minitrpo``.

    python -m sb3_minitrpo.zoo train --env CartPole-v1
    python -m sb3_minitrpo.zoo enjoy --env CartPole-v1

are the zoo's own commands with MiniTRPO registered. In a program of one's own, :func:`register` is all it takes.
"""

import argparse
import functools
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sb3_minitrpo.minitrpo import MiniTRPO

if TYPE_CHECKING:
    import optuna

NAME = "minitrpo"
SETTINGS = Path(__file__).with_suffix(".yml")

# The zoo's commands, and what differs from their own defaults: a model is looked for where ``train`` saves it,
# and not in the collection that the zoo would download.
COMMANDS: dict[str, list[str]] = {"train": [], "enjoy": ["-f", "logs"], "record_video": ["-f", "logs"]}


def register() -> None:
    """
    Make ``minitrpo`` an algorithm of rl_zoo3 in this process: training, loading, optimisation and settings.

    The zoo has no mechanism for plugins. It looks a name up in three tables, and for settings in a file of its own
    folder, for which :data:`SETTINGS` stands in unless the caller names another. A second call changes nothing.

    :raises ImportError: if rl_zoo3 is not installed
    """
    try:
        from rl_zoo3 import exp_manager, hyperparams_opt, utils
    except ModuleNotFoundError as error:
        raise ImportError(f'{error}: MiniTRPO in the RL Zoo needs pip install "sb3_minitrpo[zoo]"') from error
    if NAME in hyperparams_opt.HYPERPARAMS_SAMPLER:
        return
    utils.ALGOS[NAME] = MiniTRPO
    hyperparams_opt.HYPERPARAMS_SAMPLER[NAME] = sample_params
    hyperparams_opt.HYPERPARAMS_CONVERTER[NAME] = hyperparams_opt.convert_onpolicy_params
    manager = exp_manager.ExperimentManager
    manager.__init__ = with_settings(manager.__init__)  # type: ignore[method-assign]


def with_settings(init: Callable[..., None]) -> Callable[..., None]:
    """
    :param init: the constructor of the zoo's ``ExperimentManager``
    :return: the same, which reads :data:`SETTINGS` for ``minitrpo`` where no ``config`` is given
    """

    @functools.wraps(init)
    def init_with_settings(
        self: Any, args: argparse.Namespace, algo: str, *rest: Any, config: str | None = None, **others: Any
    ) -> None:
        if algo == NAME:
            config = config or str(SETTINGS)
        init(self, args, algo, *rest, config=config, **others)

    return init_with_settings


def sample_params(trial: "optuna.Trial", n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
    """
    Arguments of :class:`MiniTRPO` for one trial of the zoo's optimisation.

    The names are those that the zoo samples for TRPO and its ``convert_onpolicy_params`` understands. The trust region
    is that of whole actions, so ``target_kl`` and ``cg_damping`` reach further up than the zoo's: its tuned
    values for six or more action dimensions are a joint KL of 0.06 to 0.24 nats and a damping of 0.6 to 1.7.

    :param trial: where the values come from
    :param n_actions: dimensions of a Box action space, else 0; as the zoo passes it
    :param n_envs: number of environments
    :param additional_args: for other algorithms
    """
    from rl_zoo3.hyperparams_opt import convert_onpolicy_params

    trial.suggest_float("target_kl", 1e-3, 0.5, log=True)
    trial.suggest_float("cg_damping", 1e-3, 2.0, log=True)
    trial.suggest_int("cg_max_steps", 5, 30)
    trial.suggest_float("line_search_accept_ratio", 0.0, 0.5)
    trial.suggest_float("ent_coef", 1e-8, 0.1, log=True)
    trial.suggest_float("learning_rate", 1e-5, 2e-3, log=True)
    trial.suggest_int("n_critic_updates", 5, 30)
    trial.suggest_int("batch_size_pow", 5, 10)  # 32 to 1024
    trial.suggest_int("n_steps_pow", 5, 12)  # 32 to 4096
    trial.suggest_float("one_minus_gamma", 1e-4, 0.03, log=True)
    trial.suggest_float("one_minus_gae_lambda", 1e-4, 0.1, log=True)
    trial.suggest_categorical("net_arch", ["small", "medium"])
    trial.suggest_categorical("activation_fn", ["tanh", "relu"])

    params = convert_onpolicy_params(trial.params)
    for name in ("gamma", "gae_lambda", "batch_size", "n_steps"):
        trial.set_user_attr(name, params[name])  # the zoo's report shows what was sampled, and these next to it
    return params


def run(command: str, arguments: Sequence[str]) -> None:
    """
    Run a command of the zoo, with ``minitrpo`` for its ``--algo`` unless the arguments say otherwise.

    :param command: one of :data:`COMMANDS`
    :param arguments: its command line
    :raises ImportError: if rl_zoo3 is not installed
    """
    register()
    sys.argv[1:] = ["--algo", NAME, *COMMANDS[command], *arguments]  # of an option given twice, argparse takes the last
    runpy.run_module(f"rl_zoo3.{command}", run_name="__main__")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m sb3_minitrpo.zoo",
        usage="%(prog)s [-h] COMMAND ...",
        description="Run a command of the RL Zoo with MiniTRPO as its algorithm.",
    )
    parser.add_argument("command", choices=COMMANDS, help="COMMAND --help lists its arguments")
    run(parser.parse_args(sys.argv[1:2]).command, sys.argv[2:])


if __name__ == "__main__":
    main()
