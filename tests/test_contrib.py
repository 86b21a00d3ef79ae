"""
One update of MiniTRPO is one of sb3_contrib's TRPO, once its settings are converted.

contrib averages the KL divergence over the d dimensions of a Box or a MultiBinary where we sum, and so its target_kl δ
and cg_damping λ are our d·δ and d·λ. For MultiDiscrete it sums as well.
"""

from typing import Any

import pytest
import sb3_contrib
import torch as th

from sb3_minitrpo import MiniTRPO
from tests.helpers import ACTION_SPACES, ReachEnv, actor_names, moved, train_log, weights, with_rollout, with_start_of

# name: (environment, factor d, further arguments)
CASES: dict[str, tuple[Any, int, dict[str, Any]]] = {
    "Box": (ACTION_SPACES["Box"], 3, {}),
    "Discrete": (ACTION_SPACES["Discrete"], 1, {}),
    "MultiDiscrete": (ACTION_SPACES["MultiDiscrete"], 1, {}),
    "MultiBinary": (ACTION_SPACES["MultiBinary"], 3, {}),
    "Box with gSDE": (ReachEnv, 3, {"use_sde": True}),
    "Box with raw advantages": (ReachEnv, 3, {"normalize_advantage": False}),
}


def steps(case: str, target_kl: float) -> tuple[th.Tensor, th.Tensor, dict[str, Any]]:
    """
    :return: the change of the actor in one update of ours and in one of contrib's, and what ours logged
    """
    make_env, d, kwargs = CASES[case]
    # Enough iterations for two solvers to agree that start and stop in different places
    kwargs = {**kwargs, "n_steps": 256, "batch_size": 64, "cg_max_steps": 60, "n_critic_updates": 1, "device": "cpu"}
    in_joint_terms = {"target_kl": d * target_kl, "cg_damping": d * 0.1, "line_search_accept_ratio": 0.0}
    ours = with_rollout(MiniTRPO("MlpPolicy", make_env(), seed=0, **kwargs, **in_joint_terms))
    contribs = sb3_contrib.TRPO("MlpPolicy", make_env(), seed=1, **kwargs, target_kl=target_kl, cg_damping=0.1)
    contribs = with_start_of(ours, contribs)
    assert not moved(weights(ours), weights(contribs))

    actor = sorted(actor_names(ours))
    before = weights(ours)
    ours.train()
    contribs.train()
    for model in (ours, contribs):
        assert train_log(model)["is_line_search_success"] == 1.0
    change = [th.cat([(weights(model)[name] - before[name]).flatten() for name in actor]) for model in (ours, contribs)]
    return change[0].double(), change[1].double(), train_log(ours)


@pytest.mark.parametrize("target_kl", [1e-4, 1e-2])
@pytest.mark.parametrize("case", CASES)
def test_one_update_is_that_of_contrib(case, target_kl):
    ours, contribs, log = steps(case, target_kl)
    assert th.cosine_similarity(ours, contribs, dim=0) > 0.999
    assert log["backtracks"] == 0, "the direction of KL decides nothing where both accept the full step"
    assert float(ours.norm()) == pytest.approx(float(contribs.norm()), rel=1e-3)
