"""
Trust Region Policy Optimization for Stable-Baselines3.

:class:`MiniTRPO` is the algorithm; :class:`TRPOUpdater` is its step, for a training loop of your own.
"""

from sb3_minitrpo.minitrpo import MiniTRPO
from sb3_minitrpo.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_minitrpo.trust_region import (
    GaussianPolicy,
    MultiCategorical,
    NonFiniteError,
    StepInfo,
    TRPOConfig,
    TRPOUpdater,
    conjugate_gradients,
    flat_grad,
    flat_params,
    set_flat_params,
)

__version__ = "0.1.0"

__all__ = [
    "CnnPolicy",
    "GaussianPolicy",
    "MiniTRPO",
    "MlpPolicy",
    "MultiCategorical",
    "MultiInputPolicy",
    "NonFiniteError",
    "StepInfo",
    "TRPOConfig",
    "TRPOUpdater",
    "conjugate_gradients",
    "flat_grad",
    "flat_params",
    "set_flat_params",
]
