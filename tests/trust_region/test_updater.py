import copy
import math

import pytest
import torch as th
from torch import nn
from torch.distributions import Categorical, Independent, Normal, kl_divergence

from sb3_minitrpo import GaussianPolicy, NonFiniteError, TRPOConfig, TRPOUpdater, flat_params
from sb3_minitrpo.trust_region.fisher import fisher_product
from tests.trust_region.policies import FAMILIES, dense, make_problem, moved, per_state

EXACT = TRPOConfig(max_kl=0.01, cg_iters=80, cg_damping=0.1)


def rollouts(policy: GaussianPolicy, n: int = 256, seed: int = 0) -> tuple[th.Tensor, th.Tensor, th.Tensor, th.Tensor]:
    th.manual_seed(seed)
    states = th.randn(n, 3)
    with th.no_grad():
        dist = policy.dist(states)
        actions = dist.sample()
        return states, actions, th.randn(n), dist.log_prob(actions)


@pytest.fixture
def policy() -> GaussianPolicy:
    th.manual_seed(0)
    return GaussianPolicy(obs_dim=3, act_dim=2, hidden_sizes=(16, 16))


class TestAgainstDenseAlgebra:
    @pytest.mark.parametrize(("dtype", "tolerance"), [(th.float64, 1e-6), (th.float32, 1e-3)])
    @pytest.mark.parametrize("family", FAMILIES)
    def test_the_whole_step(self, family, dtype, tolerance):
        oracle = dense(make_problem(family))  # float64
        damped = oracle.fisher + EXACT.cg_damping * th.eye(len(oracle.gradient), dtype=th.float64)
        x = th.linalg.solve(damped, oracle.gradient)
        full_step = x * math.sqrt(2 * EXACT.max_kl / float(x @ damped @ x))
        zero = th.zeros_like(full_step)
        for backtracks in range(EXACT.backtrack_iters):
            fraction = EXACT.backtrack_coeff**backtracks
            step = fraction * full_step
            improve = float(oracle.surrogate(step) - oracle.surrogate(zero))
            promised = fraction * float(oracle.gradient @ full_step)
            if float(oracle.kl(step)) <= EXACT.max_kl and improve >= EXACT.accept_ratio * promised:
                break

        problem = make_problem(family, dtype)
        params = list(moved(problem.policy, problem.states).values())
        before = flat_params(params)
        info = TRPOUpdater(problem.policy, EXACT).step(*problem[1:])
        taken = (flat_params(params) - before).double()

        assert info.accepted
        assert info.backtracks == backtracks
        assert float((taken - step).norm() / step.norm()) < tolerance
        assert info.step_size == pytest.approx(float(step.norm()), rel=tolerance)
        assert info.improve == pytest.approx(improve, rel=max(tolerance, 1e-5))
        assert info.expected_improve == pytest.approx(promised, rel=tolerance)
        assert info.kl == pytest.approx(float(oracle.kl(step)), rel=max(tolerance, 1e-5))
        assert info.grad_norm == pytest.approx(float(oracle.gradient.norm()), rel=tolerance)
        assert info.surrogate == pytest.approx(float(oracle.surrogate(step)), rel=max(tolerance, 1e-5), abs=1e-6)

    def test_thinned_curvature_uses_every_kth_state_and_all_data_elsewhere(self):
        problem = make_problem("normal")
        thin = dense(problem._replace(states=problem.states[::3], **{
            name: getattr(problem, name)[::3] for name in ("actions", "advantages", "old_logp")
        }))  # fmt: skip
        full = dense(problem)
        damped = thin.fisher + EXACT.cg_damping * th.eye(len(full.gradient), dtype=th.float64)
        x = th.linalg.solve(damped, full.gradient)
        x *= math.sqrt(2 * EXACT.max_kl / float(x @ damped @ x))
        before = flat_params(problem.policy)
        config = TRPOConfig(max_kl=0.01, cg_iters=80, cg_damping=0.1, sub_sampling_factor=3, accept_ratio=0.0)
        info = TRPOUpdater(problem.policy, config).step(*problem[1:])
        taken = flat_params(problem.policy) - before
        expected = 0.8**info.backtracks * x
        assert float((taken - expected).norm() / expected.norm()) < 1e-6
        assert info.kl == pytest.approx(float(full.kl(taken)), rel=1e-6)

    @pytest.mark.parametrize("family", ["normal", "categorical_logits", "multi_categorical", "bernoulli"])
    def test_the_entropy_bonus_is_in_gradient_and_objective(self, family):
        """Zero advantages leave the entropy alone: the step climbs it, and the gain is what it gains."""
        problem = make_problem(family)
        entropy = per_state(problem.policy.dist(problem.states).entropy()).mean()
        params = list(moved(problem.policy, problem.states).values())
        grads = th.autograd.grad(entropy, params, allow_unused=True)
        norm = math.sqrt(sum(float(grad.square().sum()) for grad in grads if grad is not None))
        zero = th.zeros_like(problem.advantages)
        info = TRPOUpdater(problem.policy, TRPOConfig(ent_coef=0.5)).step(
            problem.states, problem.actions, zero, problem.old_logp
        )
        assert info.accepted
        assert info.grad_norm == pytest.approx(0.5 * norm)
        assert info.entropy == pytest.approx(entropy.item())
        after = per_state(problem.policy.dist(problem.states).entropy()).mean()
        assert info.improve == pytest.approx(0.5 * (after - entropy).item())

    def test_entropy_without_a_closed_form_is_estimated_with_the_right_gradient(self):
        """E_π[−log π] over many samples, for a tanh of a Gaussian: d/d log σ of the Gaussian's part is 1 per dimension."""
        problem = make_problem("tanh_normal", n=40)
        states = problem.states.repeat(1000, 1)
        with th.no_grad():
            dist = problem.policy.dist(states)
            actions = dist.sample()
            logp = dist.log_prob(actions)
        updater = TRPOUpdater(problem.policy, TRPOConfig(ent_coef=1.0, max_kl=1e-4))
        info = updater.step(states, actions, th.zeros(len(states), dtype=th.float64), logp)
        assert info.entropy == pytest.approx(-float(logp.mean()))
        assert info.accepted
        with th.no_grad():
            dist = problem.policy.dist(states)
            fresh = -float(dist.log_prob(dist.sample()).mean())
        assert fresh - info.entropy == pytest.approx(info.improve, rel=0.5)
        assert info.improve > 0


class TestInvariants:
    def test_kl_and_improvement_hold_over_many_updates(self, policy):
        updater = TRPOUpdater(policy, TRPOConfig(max_kl=0.02))
        accepted = 0
        for seed in range(20):
            states, actions, advantages, old_logp = rollouts(policy, seed=seed)
            old = copy.deepcopy(policy)
            info = updater.step(states, actions, advantages, old_logp)
            if not info.accepted:
                continue
            accepted += 1
            with th.no_grad():
                kl = kl_divergence(old.dist(states), policy.dist(states)).mean().item()
                gain = (advantages * (policy.dist(states).log_prob(actions) - old_logp).exp()).mean() - advantages.mean()
            assert 0 < info.kl <= 0.02
            assert info.kl == pytest.approx(kl, rel=1e-4)
            assert info.improve == pytest.approx(gain.item(), abs=1e-6)
            assert info.improve >= 0.1 * info.expected_improve > 0
        assert accepted >= 18

    def test_the_kl_of_a_changed_log_std_is_seen(self, policy):
        """With a view of the live log-std as "old", this part of the KL would be missing."""
        states, actions, _, old_logp = rollouts(policy)
        old = copy.deepcopy(policy)
        info = TRPOUpdater(policy).step(states, actions, (actions**2).sum(1), old_logp)
        assert info.accepted
        with th.no_grad():
            std_only = kl_divergence(
                Normal(th.zeros(2), old.log_std.exp()), Normal(th.zeros(2), policy.log_std.exp())
            ).sum().item()  # fmt: skip
            whole = kl_divergence(old.dist(states), policy.dist(states)).mean().item()
        assert std_only > 0.2 * whole
        assert info.kl == pytest.approx(whole, rel=1e-4)

    @pytest.mark.parametrize(
        ("advantage", "config", "outcome"),
        [
            (0.0, {}, "gradient is zero"),
            (1.0, {"accept_ratio": 0.999, "backtrack_iters": 1, "max_kl": 5.0}, "KL above the bound"),
            (1.0, {"backtrack_iters": 1, "max_kl": 5.0, "cg_damping": 0.0}, "KL above the bound"),
        ],
    )
    def test_a_refused_step_leaves_the_policy_bitwise(self, policy, advantage, config, outcome):
        states, actions, advantages, old_logp = rollouts(policy)
        before = copy.deepcopy(policy.state_dict())
        info = TRPOUpdater(policy, TRPOConfig(**config)).step(states, actions, advantage * advantages, old_logp)
        assert not info.accepted
        assert info.outcome == outcome
        assert (info.step_size, info.improve, info.kl) == (0.0, 0.0, 0.0)
        assert all(th.equal(value, before[name]) for name, value in policy.state_dict().items())

    def test_accept_ratio_is_not_only_declared(self, policy):
        batch = rollouts(policy)
        twin = copy.deepcopy(policy)
        lenient = TRPOUpdater(policy, TRPOConfig(accept_ratio=0.0, max_kl=0.5)).step(*batch)
        strict = TRPOUpdater(twin, TRPOConfig(accept_ratio=0.95, max_kl=0.5)).step(*batch)
        assert lenient.improve < 0.95 * lenient.expected_improve
        assert not strict.accepted or strict.improve >= 0.95 * strict.expected_improve
        assert strict.backtracks > lenient.backtracks

    @pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e30])
    def test_the_step_does_not_depend_on_the_scale_of_the_advantages(self, policy, scale):
        states, actions, advantages, old_logp = rollouts(policy)
        start = flat_params(policy)
        twin = copy.deepcopy(policy)
        TRPOUpdater(policy).step(states, actions, advantages, old_logp)
        info = TRPOUpdater(twin).step(states, actions, scale * advantages, old_logp)
        assert info.accepted
        taken, other = flat_params(policy) - start, flat_params(twin) - start
        assert float((taken - other).norm() / taken.norm()) < 1e-3

    def test_an_error_in_the_line_search_restores_the_policy(self, policy):
        batch = rollouts(policy)
        before = flat_params(policy)
        calls = []

        def fails_at_the_second_trial(states):
            calls.append(1)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return policy.dist(states)

        with pytest.raises(KeyboardInterrupt):
            TRPOUpdater(policy, TRPOConfig(max_kl=5.0), dist=fails_at_the_second_trial).step(*batch)
        assert th.equal(flat_params(policy), before)

    def test_a_trial_that_is_not_a_number_is_a_refused_one(self, policy):
        """torch refuses a NaN mean with a ValueError; the line search goes on to a shorter step."""
        batch = rollouts(policy)
        calls = []

        def nan_at_the_first_trial(states):
            calls.append(1)
            dist = policy.dist(states)
            return Independent(Normal(dist.mean * (math.nan if len(calls) == 2 else 1.0), dist.stddev), 1)

        info = TRPOUpdater(policy, dist=nan_at_the_first_trial).step(*batch)
        assert info.accepted
        assert info.backtracks >= 1
        assert bool(flat_params(policy).isfinite().all())

    def test_same_input_same_step_and_no_random_number(self, policy):
        batch = rollouts(policy)
        twin = copy.deepcopy(policy)
        state = th.get_rng_state()
        first = TRPOUpdater(policy).step(*batch)
        second = TRPOUpdater(twin).step(*batch)
        assert first == second
        assert th.equal(flat_params(policy), flat_params(twin))
        assert th.equal(state, th.get_rng_state())

    def test_gradients_and_parameters_of_others_stay_as_they_are(self):
        class ActorCritic(GaussianPolicy):
            def __init__(self):
                super().__init__(3, 2, (8,))
                self.critic = nn.Linear(3, 1)
                self.frozen = nn.Parameter(th.ones(2), requires_grad=False)

            def dist(self, states):
                dist = super().dist(states)
                return Independent(Normal(dist.mean + self.frozen, dist.stddev), 1)

        th.manual_seed(0)
        model = ActorCritic()
        for param in model.parameters():
            param.grad = th.full_like(param, 7.0) if param.requires_grad else None
        before = copy.deepcopy(model.state_dict())
        updater = TRPOUpdater(model)
        assert updater.step(*rollouts(model)).accepted
        changed = {name for name, value in model.state_dict().items() if not th.equal(value, before[name])}
        assert changed == {name for name in before if not name.startswith(("critic", "frozen"))}
        assert {id(param) for param in updater.params} == {id(p) for name, p in model.named_parameters() if name in changed}
        assert all(th.equal(p.grad, th.full_like(p, 7.0)) for p in model.parameters() if p.requires_grad)

    def test_the_graph_of_old_log_probabilities_is_not_differentiated(self, policy):
        """Computed without no_grad, they would cancel the gradient: ∇ exp(log π − log π) = 0."""
        states, actions, advantages, old_logp = rollouts(policy)
        twin = copy.deepcopy(policy)
        TRPOUpdater(twin).step(states, actions, advantages, old_logp)
        assert TRPOUpdater(policy).step(states, actions, advantages, policy.dist(states).log_prob(actions)).accepted
        assert th.allclose(flat_params(policy), flat_params(twin), atol=1e-6)

    def test_works_under_no_grad_too(self, policy):
        with th.no_grad():
            assert TRPOUpdater(policy).step(*rollouts(policy)).accepted


class TestEvaluationMode:
    @pytest.fixture
    def noisy(self) -> GaussianPolicy:
        """Dropout and batch normalisation, with running statistics that are not those of a batch."""
        th.manual_seed(0)
        policy = GaussianPolicy(3, 2, (16,))
        policy.body = nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.5))
        policy.train()
        policy.body(3 + th.randn(64, 3))
        return policy

    def test_ratio_is_one_and_kl_zero_at_the_start(self, noisy):
        noisy.eval()
        states, actions, advantages, old_logp = rollouts(noisy)
        noisy.train()
        with th.no_grad():
            at_rest = []

            def watched(states):
                dist = GaussianPolicy.dist(noisy, states)
                at_rest.append(dist)
                return dist

            TRPOUpdater(noisy, dist=watched).step(states, actions, advantages, old_logp)
            assert th.equal(at_rest[0].log_prob(actions), old_logp)  # the ratio is exp(0)
            again = copy.deepcopy(noisy).eval().dist(states)
            assert th.equal(kl_divergence(again, copy.deepcopy(noisy).eval().dist(states)), th.zeros(len(states)))

    def test_statistics_stay_and_every_mode_comes_back(self, noisy):
        noisy.body[3].eval()
        statistics = copy.deepcopy(dict(noisy.named_buffers()))
        modes = [part.training for part in noisy.modules()]
        assert TRPOUpdater(noisy).step(*rollouts(copy.deepcopy(noisy).eval())).accepted
        assert [part.training for part in noisy.modules()] == modes
        assert all(th.equal(value, statistics[name]) for name, value in noisy.named_buffers())


class TestInput:
    def test_the_example_of_the_readme_shape(self):
        th.manual_seed(0)
        policy = GaussianPolicy(obs_dim=3, act_dim=2, hidden_sizes=(64, 64))
        config = TRPOConfig(
            max_kl=1e-2, cg_iters=10, cg_damping=1e-2, backtrack_coeff=0.8, backtrack_iters=15, accept_ratio=0.1
        )
        info = TRPOUpdater(policy, config).step(*rollouts(policy))
        assert info.step_size > 0
        assert info.improve > 0
        assert 0 < info.kl <= 1e-2

    def test_states_may_be_a_dictionary(self, policy):
        states, *rest = rollouts(policy)
        twin = copy.deepcopy(policy)
        TRPOUpdater(policy).step(states, *rest)
        joined = TRPOUpdater(
            twin, TRPOConfig(sub_sampling_factor=1), dist=lambda parts: twin.dist(th.cat([parts["a"], parts["b"]], 1))
        )
        joined.step({"a": states[:, :1], "b": states[:, 1:]}, *rest)
        assert th.equal(flat_params(policy), flat_params(twin))
        thinned = TRPOUpdater(twin, TRPOConfig(sub_sampling_factor=4), dist=joined.dist)
        assert thinned.step({"a": states[:, :1], "b": states[:, 1:]}, *rest).grad_norm > 0

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("which", ["states", "actions", "advantages", "old_logp"])
    def test_what_is_not_finite_is_named_and_nothing_is_changed(self, policy, which, bad):
        batch = dict(zip(("states", "actions", "advantages", "old_logp"), rollouts(policy), strict=True))
        batch[which][17:19] = bad
        before = flat_params(policy)
        with pytest.raises(NonFiniteError, match=rf"{which}: \d+ of \d+ values.*row 17"):
            TRPOUpdater(policy).step(**batch)
        assert th.equal(flat_params(policy), before)

    @pytest.mark.parametrize("which", range(4))
    def test_shapes_that_do_not_fit_are_refused(self, policy, which):
        """[n, 1] against [n] would broadcast to [n, n] and train on nonsense."""
        batch = list(rollouts(policy))
        batch[which] = batch[which].unsqueeze(1) if which >= 2 else batch[which][:-1]
        with pytest.raises(ValueError, match=r"\(256, 1\)|\(255, "):
            TRPOUpdater(policy).step(*batch)

    def test_a_distribution_of_the_wrong_shape_is_refused(self, policy):
        states, actions, advantages, old_logp = rollouts(policy)
        one_for_all = TRPOUpdater(policy, dist=lambda states: policy.dist(states[:1]))
        with pytest.raises(ValueError, match=r"256 states has batch shape \(1,\).*one distribution for each state"):
            one_for_all.step(states, actions, advantages, old_logp)

    def test_discrete_actions_as_a_column_are_refused(self, policy):
        """Their log-probabilities would broadcast to [n, n]."""
        states, _, advantages, old_logp = rollouts(policy)
        discrete = TRPOUpdater(policy, dist=lambda states: Categorical(logits=policy.dist(states).mean))
        with pytest.raises(ValueError, match=r"\(256, 256\): pass actions of shape \(256,\)"):
            discrete.step(states, th.zeros(256, 1), advantages, old_logp)

    def test_a_policy_without_a_distribution_is_refused(self, policy):
        with pytest.raises(ValueError, match=r"Linear gives no action distribution.*dist\(states\)"):
            TRPOUpdater(nn.Linear(3, 2))
        with pytest.raises(ValueError, match=r"Tensor.*torch\.distributions"):
            TRPOUpdater(policy, dist=lambda states: policy.dist(states).mean).step(*rollouts(policy))

    def test_a_policy_that_cannot_be_moved_is_refused(self, policy):
        policy.requires_grad_(False)
        with pytest.raises(ValueError, match="requires a gradient"):
            TRPOUpdater(policy).step(*rollouts(policy))

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("max_kl", 0.0),
            ("max_kl", -1.0),
            ("max_kl", math.nan),
            ("max_kl", "0.01"),
            ("cg_iters", 0),
            ("cg_iters", 2.5),
            ("cg_iters", True),
            ("cg_damping", -1e-9),
            ("cg_damping", math.inf),
            ("backtrack_coeff", 0.0),
            ("backtrack_coeff", 1.0),
            ("backtrack_iters", 0),
            ("accept_ratio", -0.1),
            ("accept_ratio", 1.0),
            ("residual_tol", -1.0),
            ("ent_coef", -1.0),
            ("sub_sampling_factor", 0),
        ],
    )
    def test_a_setting_that_cannot_work_is_refused_with_its_value(self, field, value):
        with pytest.raises(ValueError, match=f"{field}={value!r}: .*pass"):
            TRPOConfig(**{field: value})


def test_data_in_two_parts_make_the_step_of_the_whole(policy):
    """The seam for several processes: averages over parts, weighted by their sizes, are the averages over all."""
    states, actions, advantages, old_logp = rollouts(policy)
    params = list(policy.parameters())
    v = th.randn(flat_params(policy).shape)

    def product(rows: slice) -> th.Tensor:
        return fisher_product(policy, policy.dist, states[rows], policy.dist(states[rows]), params)(v)

    whole = product(slice(256))
    parts = [100 * product(slice(100)), 156 * product(slice(100, 256))]
    assert th.allclose(sum(parts) / 256, whole, atol=1e-6)
    seen = []

    def average(value, n):
        seen.append((tuple(value.shape), n))
        return value

    info = TRPOUpdater(policy, TRPOConfig(sub_sampling_factor=3), average=average).step(states, actions, advantages, old_logp)
    n_params = len(v)
    assert seen.count(((n_params,), 256)) == 1  # the gradient
    assert seen.count(((n_params,), 86)) == info.cg_iterations  # the products
    assert seen.count(((2 + len(params),), 256)) == 1  # L and entropy at θ₀, and which parameters are used
    assert seen.count(((2,), 256)) == 1 + info.backtracks  # L and KL of each trial
    assert len(seen) == 3 + info.cg_iterations + info.backtracks
