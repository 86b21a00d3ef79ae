import copy
import math

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn
from torch.nn import functional as F

from sb3_minitrpo.critic import critic_params, fit_critic
from sb3_minitrpo.trust_region import flat_params

ACTIONS = spaces.Box(-1.0, 1.0, (2,))
OBSERVATIONS = spaces.Box(-np.inf, np.inf, (5,))


class Extractor(BaseFeaturesExtractor):
    """Shared layers with everything that could move the policy: weights, dropout, running statistics."""

    def __init__(self, observation_space):
        super().__init__(observation_space, features_dim=8)
        self.body = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2))

    def forward(self, observations):
        return self.body(observations)


def make_policy(seed: int = 0, cls=ActorCriticPolicy, space=OBSERVATIONS, **kwargs) -> ActorCriticPolicy:
    th.manual_seed(seed)
    return cls(space, ACTIONS, lambda _: 1e-2, **kwargs)


def critic_of(policy: ActorCriticPolicy) -> list[nn.Parameter]:
    names = ("log_std", "action_net", "mlp_extractor.policy_net", "features_extractor", "pi_features_extractor")
    return [param for name, param in policy.named_parameters() if not name.startswith(names)]


def data(n: int = 100) -> tuple[th.Tensor, th.Tensor]:
    th.manual_seed(1)
    observations = th.randn(n, 5)
    return observations, observations.sum(1) + 3.0


@pytest.mark.parametrize("share", [True, False])
def test_parameters_are_found_through_the_graph(share):
    policy = make_policy(features_extractor_class=Extractor, share_features_extractor=share)
    policy.unused = nn.Linear(2, 2)
    policy.set_training_mode(False)
    expected = {id(param) for param in critic_of(policy)} - {id(param) for param in policy.unused.parameters()}
    actor = [param for param in policy.parameters() if id(param) not in expected]
    assert {id(param) for param in critic_params(policy, actor, data()[0])} == expected
    policy.value_net.requires_grad_(False)
    frozen = {id(param) for param in policy.value_net.parameters()}
    assert {id(param) for param in critic_params(policy, actor, data()[0])} == expected - frozen
    policy.requires_grad_(False)
    assert critic_params(policy, actor, data()[0]) == []


@pytest.mark.parametrize("optimizer", [th.optim.Adam, th.optim.AdamW, th.optim.SGD, th.optim.RMSprop])
@pytest.mark.parametrize("fast", [True, False])
def test_is_the_plain_loop_for_the_same_minibatches(fast, optimizer):
    kwargs = {"optimizer_class": optimizer, "optimizer_kwargs": {}}
    plain, ours = make_policy(**kwargs), make_policy(**kwargs)
    observations, returns = data()
    np.random.seed(0)
    losses = []
    for _ in range(4):
        order = np.random.permutation(100)
        for start in range(0, 100, 32):
            rows = order[start : start + 32]
            loss = F.mse_loss(plain.predict_values(observations[rows]).flatten(), returns[rows])
            plain.optimizer.zero_grad()
            loss.backward()
            plain.optimizer.step()
            losses.append(loss.item())
    np.random.seed(0)
    fit = fit_critic(ours, critic_of(ours), observations, returns, batch_size=32, n_epochs=4, fast=fast)
    assert fit.accepted
    assert fit.loss == pytest.approx(np.mean(losses), rel=1e-4)
    assert th.allclose(flat_params(ours), flat_params(plain), atol=1e-5)
    assert not th.allclose(flat_params(ours), flat_params(make_policy(**kwargs)), atol=1e-3)


@pytest.mark.parametrize("fast", [True, False])
def test_the_state_of_the_optimizer_goes_on_from_fit_to_fit_and_stays_loadable(fast):
    policy, twin = make_policy(), make_policy()
    for model, n_epochs in ((policy, [1, 1, 1]), (twin, [3])):
        np.random.seed(0)
        for n in n_epochs:
            fit_critic(model, critic_of(model), *data(), batch_size=50, n_epochs=n, fast=fast)
    assert th.allclose(flat_params(policy), flat_params(twin), atol=1e-6)
    state = policy.optimizer.state_dict()
    assert state["param_groups"][0]["fused"] is None
    fresh = make_policy()
    fresh.optimizer.load_state_dict(state)
    fit_critic(fresh, critic_of(fresh), *data(), batch_size=50, n_epochs=1, fast=not fast)


@pytest.mark.parametrize("choice", [{"foreach": True}, {"fused": False}])
def test_an_optimizer_that_was_told_how_to_step_steps_so(choice):
    policy = make_policy(optimizer_kwargs=choice)
    seen = []
    step = policy.optimizer.step
    policy.optimizer.step = lambda: seen.append(dict(policy.optimizer.param_groups[0])) or step()
    fit_critic(policy, critic_of(policy), *data(), batch_size=50, n_epochs=1)
    assert all(group[name] == value for group in seen for name, value in choice.items())


def test_the_policy_stays_bitwise_with_a_shared_extractor():
    policy = make_policy(features_extractor_class=Extractor)
    policy.set_training_mode(False)
    observations, returns = data()
    before = copy.deepcopy(policy.state_dict())
    dist = policy.get_distribution(observations).distribution.mean
    fit = fit_critic(policy, critic_of(policy), observations, returns, batch_size=32, n_epochs=2)
    assert fit.accepted
    moved = {name for name, value in policy.state_dict().items() if not th.equal(value, before[name])}
    assert moved == {name for name in before if name.startswith(("value_net", "mlp_extractor.value_net"))}
    assert th.equal(policy.get_distribution(observations).distribution.mean, dist)


def test_statistics_of_the_critics_own_normalisation_are_learned():
    policy = make_policy(features_extractor_class=Extractor, share_features_extractor=False)
    before = copy.deepcopy(policy.state_dict())
    fit_critic(policy, critic_of(policy), *data(), batch_size=32, n_epochs=2)
    moved = {name for name, value in policy.state_dict().items() if not th.equal(value, before[name])}
    assert "vf_features_extractor.body.1.running_mean" in moved
    assert not any(name.startswith(("pi_features_extractor", "features_extractor")) for name in moved)


def test_observations_may_be_a_dictionary():
    space = spaces.Dict({"a": OBSERVATIONS, "b": spaces.Discrete(3)})
    policy = make_policy(cls=MultiInputActorCriticPolicy, space=space)
    observations = {"a": data()[0], "b": th.arange(100).reshape(100, 1) % 3}
    losses = [
        fit_critic(policy, critic_of(policy), observations, data()[1], batch_size=64, n_epochs=10).loss for _ in range(3)
    ]
    assert losses[2] < 0.5 * losses[0]


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("scale", [1e30, 3e38])
def test_a_fit_that_overflows_is_taken_back(fast, scale):
    policy = make_policy()
    fit_critic(policy, critic_of(policy), *data(), batch_size=32, n_epochs=1, fast=fast)
    before = copy.deepcopy((policy.state_dict(), policy.optimizer.state_dict()))
    observations, returns = data()
    fit = fit_critic(policy, critic_of(policy), observations, scale * returns.sign(), batch_size=32, n_epochs=1, fast=fast)
    assert not fit.accepted
    assert all(th.equal(value, before[0][name]) for name, value in policy.state_dict().items())
    state = policy.optimizer.state_dict()["state"]
    assert state.keys() == before[1]["state"].keys()
    assert all(th.equal(value[name], before[1]["state"][i][name]) for i, value in state.items() for name in value)


def test_a_mask_of_infinities_is_no_overflow():
    class Masked(Extractor):
        def __init__(self, observation_space):
            super().__init__(observation_space)
            self.register_buffer("mask", th.full((8,), -th.inf))

    policy = make_policy(features_extractor_class=Masked)
    assert fit_critic(policy, critic_of(policy), *data(), batch_size=32, n_epochs=1).accepted


def test_an_interruption_leaves_modes_and_optimizer_in_order():
    policy = make_policy()
    policy.optimizer.step = lambda: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        fit_critic(policy, critic_of(policy), *data(), batch_size=32, n_epochs=1)
    assert not policy.training
    assert policy.optimizer.param_groups[0]["fused"] is None


def test_no_pass_is_no_fit():
    policy = make_policy()
    before = flat_params(policy)
    assert math.isnan(fit_critic(policy, critic_of(policy), *data(), batch_size=32, n_epochs=0).loss)
    assert th.equal(flat_params(policy), before)
