"""
The step: one TRPO update from given rollouts. Pure torch; knows nothing of Stable-Baselines3, environments or loggers.

Read :meth:`updater.TRPOUpdater.step` first, then what it calls: ``fisher``, ``conjugate_gradient``, ``line_search``.
"""

from sb3_minitrpo.trust_region.checks import NonFiniteError
from sb3_minitrpo.trust_region.config import TRPOConfig
from sb3_minitrpo.trust_region.conjugate_gradient import conjugate_gradients
from sb3_minitrpo.trust_region.gaussian_policy import GaussianPolicy
from sb3_minitrpo.trust_region.joint import MultiCategorical
from sb3_minitrpo.trust_region.parameters import flat_grad, flat_params, set_flat_params
from sb3_minitrpo.trust_region.updater import StepInfo, TRPOUpdater

__all__ = [
    "GaussianPolicy",
    "MultiCategorical",
    "NonFiniteError",
    "StepInfo",
    "TRPOConfig",
    "TRPOUpdater",
    "conjugate_gradients",
    "flat_grad",
    "flat_params",
    "set_flat_params",
]
