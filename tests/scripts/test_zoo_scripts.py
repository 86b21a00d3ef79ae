"""The RL Zoo's commands with MiniTRPO, as a user runs them: in a process and a folder of their own, without a display."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sb3_minitrpo import MiniTRPO

pytest.importorskip("rl_zoo3")

SCRIPTS = Path(__file__).parents[2] / "scripts"
SHORT = ["-n", "256", "--seed", "1", "--num-threads", "1", "-params", "n_steps:64", "batch_size:64", "n_critic_updates:2"]


def command(folder: Path, *words: str) -> subprocess.CompletedProcess:
    surroundings = {**os.environ, "SDL_VIDEODRIVER": "dummy"}
    return subprocess.run([sys.executable, *words], cwd=folder, env=surroundings, capture_output=True, text=True, timeout=120)


def succeed(folder: Path, *words: str) -> str:
    done = command(folder, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def train(folder: Path, *arguments: str) -> str:
    return succeed(folder, str(SCRIPTS / "zoo_train.py"), "--algo", "minitrpo", *arguments)


def enjoy(folder: Path, *arguments: str) -> str:
    return succeed(folder, str(SCRIPTS / "zoo_enjoy.py"), "--algo", "minitrpo", "--no-render", *arguments)


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory) -> Path:
    """A folder in which a training with evaluations and checkpoints was run."""
    folder = tmp_path_factory.mktemp("cartpole")
    train(folder, *SHORT, "target_kl:0.02", "--eval-freq", "128", "--save-freq", "128")
    return folder


def test_train_saves_a_model_with_our_settings_and_those_of_the_command_line(cartpole):
    model = MiniTRPO.load(cartpole / "logs/minitrpo/CartPole-v1_1/CartPole-v1.zip", device="cpu")
    assert model.num_timesteps == 256
    assert (model.target_kl, model.n_steps) == (0.02, 64)
    assert (model.cg_damping, model.gae_lambda) == (0.001, 0.98)


def test_train_runs_the_callbacks_of_the_zoo(cartpole):
    run = cartpole / "logs/minitrpo/CartPole-v1_1"
    assert np.load(run / "evaluations.npz")["timesteps"].tolist() == [128, 256]
    assert {path.name for path in run.glob("rl_model_*")} == {"rl_model_128_steps.zip", "rl_model_256_steps.zip"}


@pytest.mark.parametrize("which", [[], ["--load-best"], ["--load-last-checkpoint"]], ids=["last", "best", "checkpoint"])
def test_enjoy_plays_what_train_saved(cartpole, which):
    assert "Mean reward:" in enjoy(cartpole, "-n", "600", *which)  # an episode of CartPole has at most 500 steps


def test_record_video_films_what_train_saved(cartpole):
    pytest.importorskip("pygame")
    succeed(cartpole, "-m", "sb3_minitrpo.zoo", "record_video", "-n", "20", "--no-render")
    (film,) = cartpole.glob("logs/minitrpo/CartPole-v1_1/videos/*.mp4")
    assert film.stat().st_size > 0


def test_enjoy_of_a_normalized_task_loads_the_statistics_and_shows_rewards_as_they_are(tmp_path):
    train(tmp_path, "--env", "MountainCar-v0", *SHORT, "--eval-freq", "-1")
    shown = enjoy(tmp_path, "--env", "MountainCar-v0", "-n", "200")
    assert "Loading running average" in shown
    assert "Episode Reward: -200.00" in shown


def test_optimize_runs_its_trials_and_reports_joint_terms(tmp_path):
    words = ["-n", "256", "--seed", "1", "--num-threads", "1"]
    train(tmp_path, *words, "-optimize", "--n-trials", "2", "--n-evaluations", "1", "--eval-episodes", "1", "--no-optim-plots")
    (report,) = tmp_path.glob("logs/minitrpo/report_CartPole-v1_*.csv")
    trials = list(csv.DictReader(report.open()))
    assert [trial["state"] for trial in trials] == ["COMPLETE", "COMPLETE"]
    assert all(1e-3 <= float(trial["params_target_kl"]) <= 0.5 for trial in trials)


def test_a_wrong_algorithm_is_refused_with_the_list_of_right_ones(tmp_path):
    done = command(tmp_path, str(SCRIPTS / "zoo_train.py"), "--algo", "minitrop")
    assert done.returncode == 2
    assert "minitrop" in done.stderr
    assert "minitrpo" in done.stderr


def test_a_wrong_command_is_refused_with_the_list_of_right_ones(tmp_path):
    done = command(tmp_path, "-m", "sb3_minitrpo.zoo", "trian")
    assert done.returncode == 2
    assert "train" in done.stderr
