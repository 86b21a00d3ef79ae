import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common import distributions as sb3
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn
from torch.distributions import Beta, Categorical

from sb3_minitrpo import MiniTRPO
from sb3_minitrpo.distributions import as_torch
from sb3_minitrpo.trust_region import joint


class Shifted(sb3.DiagGaussianDistribution):
    """Says something of its own about probabilities."""

    def log_prob(self, actions):
        return super().log_prob(actions - 1.0)


class BetaDistribution(sb3.Distribution):
    """Of actions in [−1, 1]."""

    def proba_distribution_net(self, latent_dim):
        return nn.Linear(latent_dim, 2)

    def proba_distribution(self, params):
        alpha, beta = (1.0 + nn.functional.softplus(params)).split(1, dim=1)
        self.distribution = Beta(alpha, beta)
        return self

    def log_prob(self, actions):
        return self.distribution.log_prob(((actions + 1.0) / 2.0).clamp(1e-6, 1 - 1e-6)).sum(1) - np.log(2.0)

    def entropy(self):
        return self.distribution.entropy().sum(1) + np.log(2.0)

    def sample(self):
        return 2.0 * self.distribution.sample() - 1.0

    def mode(self):
        return 2.0 * self.distribution.mean - 1.0

    def actions_from_params(self, params, deterministic=False):
        return self.proba_distribution(params).get_actions(deterministic)

    def log_prob_from_params(self, params):
        actions = self.actions_from_params(params)
        return actions, self.log_prob(actions)


class BetaPolicy(ActorCriticPolicy):
    def _build(self, lr_schedule):
        super()._build(lr_schedule)
        self.action_dist = BetaDistribution()
        self.action_net = self.action_dist.proba_distribution_net(self.mlp_extractor.latent_dim_pi)
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1))

    def _get_action_dist_from_latent(self, latent_pi):
        return self.action_dist.proba_distribution(self.action_net(latent_pi))


def gaussian(kind, **kwargs):
    dist = kind(2, **kwargs)
    return dist.proba_distribution(th.randn(5, 2), th.randn(2))


@pytest.mark.parametrize("kind", [sb3.DiagGaussianDistribution, sb3.SquashedDiagGaussianDistribution, Shifted])
def test_log_probabilities_are_those_of_the_policy(kind):
    th.manual_seed(0)
    dist = gaussian(kind)
    actions = dist.sample()
    ours, expected = as_torch(dist), dist.log_prob(actions)
    gaussian_of_other_states = dist.proba_distribution(th.randn(5, 2), th.randn(2))  # the object is used for all states
    assert gaussian_of_other_states is dist
    assert th.allclose(joint.log_prob(ours, actions), expected)


def test_squashing_changes_neither_kl_nor_its_hessian_and_has_no_entropy():
    th.manual_seed(0)
    old, new = (gaussian(sb3.SquashedDiagGaussianDistribution) for _ in range(2))
    plain = [th.distributions.Independent(dist.distribution, 1) for dist in (old, new)]
    old, new = as_torch(old), as_torch(new)
    assert th.equal(joint.kl(old, new), joint.kl(*plain))
    assert th.equal(joint.kl(joint.snapshot(old), new), joint.kl(*plain))
    assert [block.z.shape for block in joint.fisher_blocks(old)] == [(5, 2), (5, 2)]
    assert joint.entropy(old) is None


def test_several_categoricals_are_one_action():
    dist = sb3.MultiCategoricalDistribution([2, 3]).proba_distribution(th.randn(4, 5))
    actions = dist.sample()
    assert th.allclose(joint.log_prob(as_torch(dist), actions), dist.log_prob(actions))
    assert th.allclose(joint.entropy(as_torch(dist)), dist.entropy())


def test_a_distribution_of_torch_is_handed_through_and_anything_else_refused():
    dist = Categorical(logits=th.zeros(3, 2))
    assert as_torch(dist) is dist
    with pytest.raises(ValueError, match=r"gave a Tensor.*torch\.distributions"):
        as_torch(th.zeros(3))


def test_a_policy_with_a_distribution_of_its_own_trains():
    model = MiniTRPO(BetaPolicy, gym.make("Pendulum-v1"), n_steps=256, seed=0, target_kl=0.02)
    model.learn(3 * 256)
    log = model.logger.name_to_value
    assert log["train/is_line_search_success"] == 1
    assert 0 < log["train/kl_divergence_loss"] <= 0.02
