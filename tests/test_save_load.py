"""What is saved comes back, whole, and learns on."""

from typing import Any

import numpy as np
import pytest
import sb3_contrib
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_minitrpo import MiniTRPO
from tests.helpers import (
    ACTION_SPACES,
    SMALL,
    ReachEnv,
    SharedTrunkPolicy,
    WatchedTRPO,
    assert_trust_region_kept,
    moved,
    other_than_default,
    same_state,
    weights,
)


def trained(policy: Any = "MlpPolicy", env: Any = None, **kwargs: Any) -> MiniTRPO:
    env = ReachEnv() if env is None else env
    return MiniTRPO(policy, env, **{**SMALL, **kwargs}).learn(2 * 64)


MODELS: dict[str, dict[str, Any]] = {
    **{name: {"env": env} for name, env in ACTION_SPACES.items()},
    "sde": {"use_sde": True, "sde_sample_freq": 4, "policy_kwargs": {"squash_output": True}},
    "own_policy": {"policy": SharedTrunkPolicy},
    "separate_extractor": {"policy_kwargs": {"share_features_extractor": False}},
}


@pytest.mark.parametrize("with_env", [True, False])
@pytest.mark.parametrize("kind", MODELS)
def test_weights_optimizer_and_predictions_come_back(tmp_path, kind, with_env):
    make_env = MODELS[kind].get("env", ReachEnv)
    model = trained(**{**MODELS[kind], "env": make_env()})
    model.save(tmp_path / "model")
    loaded = MiniTRPO.load(tmp_path / "model", env=make_env() if with_env else None, device="cpu")

    assert type(loaded) is MiniTRPO
    assert not moved(weights(model), weights(loaded))
    assert same_state(loaded.policy.optimizer.state_dict(), model.policy.optimizer.state_dict())
    assert loaded.policy.optimizer.state_dict()["state"], "Adam has moments by now"
    observations = np.stack([make_env().observation_space.sample() for _ in range(20)])
    np.testing.assert_array_equal(*(each.predict(observations, deterministic=True)[0] for each in (model, loaded)))


@pytest.mark.parametrize("with_env", [True, False])
def test_every_argument_comes_back(tmp_path, with_env):
    arguments = other_than_default(tmp_path)
    MiniTRPO("MlpPolicy", ReachEnv(), device="cpu", **arguments).learn(2 * 32).save(tmp_path / "model")
    loaded = MiniTRPO.load(tmp_path / "model", env=ReachEnv() if with_env else None, device="cpu")
    for name, value in arguments.items():
        back = getattr(loaded, name)
        if callable(value) and not isinstance(value, type):
            assert [back(progress) for progress in (1.0, 0.3, 0.0)] == [value(progress) for progress in (1.0, 0.3, 0.0)], name
        else:
            assert back == value, name
    assert (loaded.num_timesteps, loaded._n_updates) == (64, 2)


def test_arguments_of_load_replace_those_of_the_file(tmp_path):
    trained().save(tmp_path / "model")
    loaded = MiniTRPO.load(tmp_path / "model", device="cpu", target_kl=0.5, cg_max_steps=3)
    assert (loaded.target_kl, loaded.cg_max_steps) == (0.5, 3)


@pytest.mark.parametrize(
    ("name", "value"),
    [("target_kl", -1.0), ("line_search_shrinking_factor", 2.0), ("cg_max_steps", 0), ("n_critic_updates", -1)],
)
def test_wrong_arguments_of_load_are_told(tmp_path, name, value):
    trained().save(tmp_path / "model")
    with pytest.raises(ValueError, match=f"{name}={value}"):
        MiniTRPO.load(tmp_path / "model", device="cpu", **{name: value})


def test_target_kl_given_to_load_bounds_the_steps(tmp_path):
    trained(target_kl=0.05).save(tmp_path / "model")
    loaded = WatchedTRPO.load(tmp_path / "model", env=ReachEnv(), device="cpu", target_kl=1e-4)
    loaded.learn(3 * 64)
    assert assert_trust_region_kept(loaded)
    assert all(update.kl <= 1e-4 + 1e-6 for update in loaded.updates)


@pytest.mark.parametrize("n_envs", [1, 3])
def test_training_on_after_load(tmp_path, n_envs):
    """Also with another number of environments than before."""
    model = trained(env=make_vec_env(ReachEnv, n_envs=2, seed=0))
    model.save(tmp_path / "model")
    loaded = WatchedTRPO.load(tmp_path / "model", env=make_vec_env(ReachEnv, n_envs=n_envs, seed=0), device="cpu")
    loaded.learn(3 * 64 * n_envs, reset_num_timesteps=False)
    assert len(assert_trust_region_kept(loaded)) == 3
    assert loaded.num_timesteps == 128 + 3 * 64 * n_envs
    assert loaded.updates[-1].log["n_updates"] == model._n_updates + 3


def test_saved_and_loaded_is_as_good_as_never_stopped(tmp_path):
    """From the same seeds and an environment that starts anew, the next update is bitwise the same."""
    model = trained()
    model.save(tmp_path / "model")
    after = []
    for each in (model, MiniTRPO.load(tmp_path / "model", device="cpu")):
        each.set_env(ReachEnv())
        each.set_random_seed(7)
        after.append(weights(each.learn(2 * 64)))
    assert not moved(*after)


def test_loaded_without_environment_learns_once_it_has_one(tmp_path):
    trained().save(tmp_path / "model")
    loaded = MiniTRPO.load(tmp_path / "model", device="cpu")
    assert loaded.get_env() is None
    loaded.set_env(ReachEnv())
    before = weights(loaded)
    assert moved(before, weights(loaded.learn(64)))


@pytest.mark.parametrize("from_file", [True, False])
def test_set_parameters(tmp_path, from_file):
    model, other = trained(), trained(seed=1)
    assert moved(weights(model), weights(other))
    model.save(tmp_path / "model")
    other.set_parameters(str(tmp_path / "model") if from_file else model.get_parameters(), device="cpu")
    assert not moved(weights(model), weights(other))
    assert same_state(other.policy.optimizer.state_dict(), model.policy.optimizer.state_dict())
    with pytest.raises(ValueError, match="Names of parameters"):
        other.set_parameters({"policy": model.policy.state_dict()}, device="cpu")


def test_vec_normalize_is_saved_beside_the_model(tmp_path):
    env = VecNormalize(make_vec_env("Pendulum-v1", n_envs=2, seed=0))
    model = trained(env=env)
    model.save(tmp_path / "model")
    env.save(str(tmp_path / "statistics"))
    again = VecNormalize.load(str(tmp_path / "statistics"), make_vec_env("Pendulum-v1", n_envs=2, seed=0))
    loaded = WatchedTRPO.load(tmp_path / "model", env=again, device="cpu")
    assert loaded.get_vec_normalize_env() is again
    loaded.learn(2 * 2 * 64)
    assert assert_trust_region_kept(loaded)


@pytest.mark.parametrize("space", ACTION_SPACES)
def test_file_of_contrib_opens_and_learns_on(tmp_path, space):
    make_env = ACTION_SPACES[space]
    contrib = sb3_contrib.TRPO(
        "MlpPolicy", make_env(), n_steps=64, batch_size=32, gamma=0.9, target_kl=0.02, cg_damping=0.3, seed=0, device="cpu"
    ).learn(2 * 64)
    contrib.save(tmp_path / "model")
    loaded = WatchedTRPO.load(tmp_path / "model", env=make_env(), device="cpu")
    assert not moved(weights(contrib), weights(loaded))
    assert same_state(loaded.policy.optimizer.state_dict(), contrib.policy.optimizer.state_dict())
    assert (loaded.gamma, loaded.target_kl, loaded.cg_damping, loaded.n_steps) == (0.9, 0.02, 0.3, 64)
    loaded.learn(3 * 64, reset_num_timesteps=False)
    assert assert_trust_region_kept(loaded)
    assert loaded.num_timesteps == 5 * 64
    loaded.save(tmp_path / "ours")
    assert not moved(weights(loaded), weights(MiniTRPO.load(tmp_path / "ours", device="cpu")))


def test_contrib_files_without_environment(tmp_path):
    sb3_contrib.TRPO("MlpPolicy", ReachEnv(), n_steps=64, batch_size=32, device="cpu").learn(64).save(tmp_path / "model")
    loaded = MiniTRPO.load(tmp_path / "model", device="cpu")
    actions, _ = loaded.predict(np.zeros((5, 3), dtype=np.float32))
    assert actions.shape == (5, 3)
