"""Train MiniTRPO on a task; print the return before and after; save the model and a picture of the learning curve."""

import argparse
import csv
from pathlib import Path

import gymnasium as gym
import matplotlib
import numpy as np
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import get_latest_run_id
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_minitrpo import MiniTRPO

matplotlib.use("Agg")
import matplotlib.pyplot as plt

EVALUATION_EPISODES = 20


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--env", default="CartPole-v1", help="id of a Gymnasium environment")
    parser.add_argument("--steps", type=int, default=100_000, help="environment steps to train for")
    parser.add_argument("--n-envs", type=int, default=1, help="environments stepped side by side")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target-kl", type=float, default=0.01, help="size of the trust region, in nats")
    parser.add_argument(
        "--normalize",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="normalize observations and rewards (by default: for MuJoCo tasks)",
    )
    parser.add_argument("--out", type=Path, default=Path("runs"), help="where the folder of this run is made")
    args = parser.parse_args()
    for name in ("steps", "n_envs"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(args, name)}: pass a number of at least 1")
    try:
        spec = gym.spec(args.env)
    except gym.error.Error as error:
        parser.error(f"--env {args.env}: {error}")
    if args.normalize is None:
        args.normalize = "mujoco" in str(spec.entry_point)
    return args


def make_env(args: argparse.Namespace, seed: int, monitor_dir: Path | None = None) -> VecEnv:
    env: VecEnv = make_vec_env(args.env, args.n_envs, seed=seed, monitor_dir=str(monitor_dir) if monitor_dir else None)
    return VecNormalize(env) if args.normalize else env


def evaluate(model: MiniTRPO, env: VecEnv) -> str:
    """Mean return without exploration, on environments of their own, normalized as in training."""
    if isinstance(env, VecNormalize):
        env.training, env.norm_reward = False, False
        env.obs_rms = model.get_vec_normalize_env().obs_rms
    mean, std = evaluate_policy(model, env, n_eval_episodes=EVALUATION_EPISODES)
    return f"{mean:.1f} ± {std:.1f} (mean and standard deviation of {EVALUATION_EPISODES} episodes)"


def read_episodes(monitor_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    """Steps taken in all at the end of each episode, and its return, in the order of time."""
    episodes = []
    for path in monitor_dir.glob("*.monitor.csv"):
        with path.open() as file:
            next(file)  # a line of metadata
            episodes += [(float(row["t"]), int(row["l"]), float(row["r"])) for row in csv.DictReader(file)]
    episodes.sort()
    return np.cumsum([length for _, length, _ in episodes]), np.array([value for *_, value in episodes])


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


def main() -> None:
    args = parse_arguments()
    run = args.out / f"{args.env.replace('/', '-')}_{get_latest_run_id(str(args.out), args.env.replace('/', '-')) + 1}"
    run.mkdir(parents=True)

    env = make_env(args, args.seed, monitor_dir=run / "episodes")
    eval_env = make_env(args, args.seed + 1000)
    model = MiniTRPO("MlpPolicy", env, target_kl=args.target_kl, seed=args.seed, device="cpu")
    print(f"{args.env}: return before training {evaluate(model, eval_env)}")
    try:
        model.learn(args.steps, progress_bar=True)
    except KeyboardInterrupt:
        print(f"\ninterrupted after {model.num_timesteps} steps: saving what there is")
    print(f"{args.env}: return after {model.num_timesteps} steps {evaluate(model, eval_env)}")

    model.save(run / "model.zip")
    if isinstance(env, VecNormalize):
        env.save(str(run / "vecnormalize.pkl"))
    steps, returns = read_episodes(run / "episodes")
    if len(returns):
        draw_learning_curve(steps, returns, f"MiniTRPO on {args.env}", run / "learning_curve.png")
    print(f"saved in {run}: {', '.join(sorted(path.name for path in run.iterdir()))}")


if __name__ == "__main__":
    main()
