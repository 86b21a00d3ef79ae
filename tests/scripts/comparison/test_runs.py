"""One run."""

from copy import deepcopy

import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from comparison import runs
from comparison.curves import POINTS
from comparison.runs import execute, training_episodes
from comparison.settings import plan_runs


def spec(task="CartPole-v1", seed=0, steps=1000, **settings):
    file = {"default": {"n_timesteps": steps, "policy": "MlpPolicy", "n_steps": 128} | settings}
    (run,) = plan_runs(file, ["minitrpo"], [task], [seed], eval_episodes=2)
    return run


def test_a_run_is_repeatable_and_another_seed_is_another_run():
    first, again, other = (execute(spec(seed=seed), "test") for seed in (0, 0, 1))
    assert first.returns == again.returns
    assert first.evaluation == again.evaluation
    assert first.returns != other.returns


def test_a_record_tells_returns_and_times():
    reported = []
    record = execute(spec(n_envs=2), "the command", reported.append)
    assert len(record.returns) == len(record.seconds["wall"]) == len(record.seconds["cpu"]) == POINTS
    assert len(record.evaluation) == 2
    assert np.all(np.diff(record.seconds["wall"]) > 0)
    assert record.seconds["wall"][-1] <= record.times["learn"]
    assert 0 < record.times["collection"] < record.times["learn"]
    assert reported == sorted(reported)
    assert reported[-1] >= 1000
    assert record.provenance["command"] == "the command"


def test_returns_are_raw_where_rewards_are_normalised():
    record = execute(spec("Pendulum-v1", steps=2000, normalize=True), "test")
    returns = [value for value in record.returns if value is not None]
    assert len(returns) == 10
    assert np.mean(returns + record.evaluation) < -500, "200 rewards of VecNormalize would be a few units each"


def test_the_evaluation_has_the_normalisation_of_the_training_and_leaves_it(tmp_path, monkeypatch):
    run = spec("Pendulum-v1", normalize=True)
    manager, model = runs.build(run, tmp_path)
    model.learn(500)
    learned = deepcopy(model.get_env().obs_rms)

    envs = []
    evaluate_policy = runs.evaluate_policy
    monkeypatch.setattr(
        runs, "evaluate_policy", lambda *args, **kwargs: envs.append(args[1]) or evaluate_policy(*args, **kwargs)
    )
    runs.evaluate(manager, model, run)
    for env in (model.get_env(), *envs):
        np.testing.assert_array_equal(env.obs_rms.mean, learned.mean)
        np.testing.assert_array_equal(env.obs_rms.var, learned.var)
    assert envs[0] is not model.get_env()
    assert np.any(learned.mean != 0)


def test_episodes_end_at_the_step_of_the_whole_training():
    """Two environments: the steps at which a callback sees them end."""

    class Ends(BaseCallback):
        def _on_training_start(self):
            self.ends = []

        def _on_step(self):
            self.ends += [(self.num_timesteps, info["episode"]["r"]) for info in self.locals["infos"] if "episode" in info]
            return True

    model = PPO("MlpPolicy", make_vec_env("CartPole-v1", n_envs=2, seed=0), n_steps=128, batch_size=64, n_epochs=1, seed=0)
    ends = Ends()
    model.learn(500, callback=ends)
    assert len(ends.ends) > 5
    assert sorted(zip(*training_episodes(model.get_env()), strict=True)) == sorted(ends.ends)


def test_a_training_too_short_for_an_episode_is_an_error():
    with pytest.raises(ValueError, match="no episode ended within 100 steps"):
        execute(spec("Pendulum-v1", steps=100), "test")
