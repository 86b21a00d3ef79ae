"""
Train MiniTRPO on a task; print the return before and after; save the model and a picture of the learning curve.

torchrun starts it in several processes, which train one model: torchrun --nproc-per-node 4 scripts/train.py ...
Ctrl-C and SIGTERM end a training early with a checkpoint, from which --resume goes on.
"""

import argparse
import csv
import importlib
import math
import os
import socket
from datetime import timedelta
from pathlib import Path

import gymnasium as gym
import matplotlib
import numpy as np
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import get_latest_run_id
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from torch.distributed.elastic.multiprocessing.errors import record

from sb3_minitrpo import MiniTRPO
from sb3_minitrpo.checkpoint import RollingCheckpoint, StopOnSignal, checkpoint_steps, load_checkpoint, stop_on_signals
from sb3_minitrpo.distributed import from_rank_0, process_group, rank

matplotlib.use("Agg")
import matplotlib.pyplot as plt

EVALUATION_EPISODES = 20
CHECKPOINT = "checkpoint.zip"
LAUNCHER = "launcher.txt"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env", default="CartPole-v1", help="id of a Gymnasium environment, or module:id (%(default)s)")
    parser.add_argument("--steps", type=int, default=100_000, help="environment steps, of all processes (%(default)s)")
    parser.add_argument("--n-envs", type=int, default=1, help="environments side by side, in each process (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, action noise and environments (%(default)s)")
    parser.add_argument("--target-kl", type=float, help="size of the trust region, in nats (0.02 for each action dimension)")
    parser.add_argument(
        "--normalize",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="normalize observations and rewards (as the task is one of MuJoCo or not)",
    )
    parser.add_argument("--out", type=Path, default=Path("runs"), help="where the folder of this run is made (%(default)s)")
    parser.add_argument(
        "--checkpoint-every", type=int, default=20_000, metavar="STEPS", help="the most that a crash may cost (%(default)s)"
    )
    parser.add_argument("--resume", type=Path, metavar="RUN", help="folder of a run to go on with, by its own command line")
    parser.add_argument(
        "--timeout", type=float, default=600.0, metavar="SECONDS", help="how long one process waits for another (%(default)s)"
    )
    args = parser.parse_args()
    for name in ("steps", "n_envs", "checkpoint_every"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(args, name)}: pass a number of at least 1")
    if not 0.0 < args.timeout < math.inf:
        parser.error(f"--timeout {args.timeout}: pass a number of seconds above 0")
    if args.resume and not (args.resume / CHECKPOINT).exists():
        parser.error(f"--resume {args.resume}: there is no {CHECKPOINT}; pass the folder of a run that has one")
    try:
        spec = find_spec(args.env)
    except (gym.error.Error, ModuleNotFoundError) as error:
        parser.error(f"--env {args.env}: {error}")
    if args.normalize is None:
        args.normalize = "mujoco" in str(spec.entry_point)
    return args


def find_spec(env_id: str) -> EnvSpec:
    """What Gymnasium knows of an id, also of one that names the module which registers it, as ``module:Task-v0``."""
    module, _, name = env_id.rpartition(":")
    if module:
        importlib.import_module(module)
    return gym.spec(name)


def launcher() -> str | None:
    """What names the torchrun that started this process, also when it starts it once more; ``None`` without torchrun."""
    run_id = os.environ.get("TORCHELASTIC_RUN_ID")
    return f"{socket.gethostname()} {os.getppid()}" if run_id == "none" else run_id  # "none" is what it is if not given


def run_folder(args: argparse.Namespace) -> Path:
    """The folder to go on in, after a restart by torchrun too, or a new one. Rank 0 chooses for all."""
    if args.resume:
        return args.resume
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)):
        interrupted = [path for path in args.out.glob(f"*/{LAUNCHER}") if path.read_text() == launcher()]
        if interrupted:
            return max(interrupted, key=lambda path: path.stat().st_mtime).parent
    name = args.env.rpartition(":")[2].replace("/", "-")
    run = args.out / f"{name}_{get_latest_run_id(str(args.out), name) + 1}"
    run.mkdir(parents=True)
    if launcher():
        (run / LAUNCHER).write_text(launcher())
    return run


def make_env(args: argparse.Namespace, seed: int, first: int = 0, monitor_dir: Path | None = None) -> VecEnv:
    return make_vec_env(
        args.env, args.n_envs, seed=seed, start_index=first, monitor_dir=str(monitor_dir) if monitor_dir else None
    )


def make_model(args: argparse.Namespace, run: Path) -> MiniTRPO:
    """The model of the run's checkpoint, or a new one."""
    checkpoint = run / CHECKPOINT
    start = checkpoint_steps(checkpoint)
    env = make_env(args, args.seed, first=rank() * args.n_envs, monitor_dir=run / "episodes" / str(start))
    if start:
        return load_checkpoint(MiniTRPO, checkpoint, env, target_kl=args.target_kl, device="cpu")
    env = VecNormalize(env) if args.normalize else env
    return MiniTRPO("MlpPolicy", env, target_kl=args.target_kl, seed=args.seed, device="cpu")


def evaluate(model: MiniTRPO, env: VecEnv) -> str:
    """Mean return without exploration, on environments of their own, normalized as in training."""
    if model.get_vec_normalize_env() is not None:
        env = VecNormalize(env, training=False, norm_reward=False)
        env.obs_rms = model.get_vec_normalize_env().obs_rms
    mean, std = evaluate_policy(model, env, n_eval_episodes=EVALUATION_EPISODES)
    return f"{mean:.1f} ± {std:.1f} (mean and standard deviation of {EVALUATION_EPISODES} episodes)"


def read_episodes(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """
    Steps taken in all at the end of each episode, and its return, in the order of time.

    :param folder: holds a folder for each time that the training was begun or gone on with, named by the steps taken until
        then. What a crash cost is not counted.
    """
    begun = sorted(int(path.name) for path in folder.iterdir())
    steps, returns = [np.zeros(0)], [np.zeros(0)]
    for start, end in zip(begun, [*begun[1:], math.inf], strict=True):
        episodes = []
        for path in (folder / str(start)).glob("*.monitor.csv"):
            with path.open() as file:
                next(file)  # a line of metadata
                episodes += [(float(row["t"]), int(row["l"]), float(row["r"])) for row in csv.DictReader(file)]
        episodes.sort()
        ends = start + np.cumsum([length for _, length, _ in episodes])
        steps.append(ends[ends <= end])
        returns.append(np.array([value for *_, value in episodes])[ends <= end])
    return np.concatenate(steps), np.concatenate(returns)


def draw_learning_curve(steps: np.ndarray, returns: np.ndarray, title: str, path: Path) -> None:
    window = max(1, min(100, len(returns) // 10))
    smooth = np.convolve(returns, np.ones(window) / window, mode="valid")
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(steps, returns, ".", markersize=3, alpha=0.3, label="episode")
    axes.plot(steps[window - 1 :], smooth, linewidth=2, label=f"mean of {window} episodes")
    axes.set(xlabel="environment steps", ylabel="return in training", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def save(model: MiniTRPO, args: argparse.Namespace, run: Path) -> None:
    model.save(run / "model.zip")
    if model.get_vec_normalize_env() is not None:
        model.get_vec_normalize_env().save(str(run / "vecnormalize.pkl"))
    steps, returns = read_episodes(run / "episodes")
    if len(returns):
        draw_learning_curve(steps, returns, f"MiniTRPO on {args.env}", run / "learning_curve.png")
    print(f"saved in {run}: {', '.join(sorted(path.name for path in run.iterdir()))}")


def train(args: argparse.Namespace, stop: StopOnSignal) -> None:
    run = from_rank_0(run_folder(args) if rank() == 0 else args.out)
    model = make_model(args, run)
    eval_env = make_env(args, args.seed + 1000)
    if rank() == 0 and model.num_timesteps:
        print(f"{args.env}: going on after {model.num_timesteps} steps, in {run}")
    elif rank() == 0:
        print(f"{args.env}: greedy return before training {evaluate(model, eval_env)}")

    left = max(args.steps - model.num_timesteps, 0)
    callbacks = [RollingCheckpoint(run / CHECKPOINT, args.checkpoint_every), stop]
    model.learn(left, callback=callbacks, reset_num_timesteps=False, progress_bar=True)

    if rank() == 0:
        if model.num_timesteps < args.steps:
            print(f"stopped after {model.num_timesteps} steps: --resume {run} goes on")
        save(model, args, run)
        print(f"{args.env}: greedy return after {model.num_timesteps} steps {evaluate(model, eval_env)}")


@record
def main() -> None:
    args = parse_arguments()
    with process_group(timedelta(seconds=args.timeout)), stop_on_signals() as stop:
        train(args, stop)


if __name__ == "__main__":
    main()
