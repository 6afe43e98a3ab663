"""FGSM as torchattacks has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoshield_bench.contracts import Attack, AttackRequest

from aubench_torchattacks.library import called, verified

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class FGSM(Attack):
    """One step of length eps along the sign of the gradient of the cross-entropy.

    Source: Goodfellow et al. 2015, arXiv:1412.6572.
    """

    def run(self, request: AttackRequest) -> Tensor:
        """Return the stepped images."""
        if not len(request.images):
            return request.images.clone()
        import torchattacks
        from autoshield_bench.target_module import TargetModule

        attack = torchattacks.FGSM(TargetModule(request), eps=request.threat.eps)
        return verified(called(attack, request), request, "torchattacks.FGSM")

    def gradient_steps(self) -> int:
        """Return the gradient evaluations per image."""
        return 1
