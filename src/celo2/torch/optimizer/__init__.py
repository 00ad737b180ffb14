"""The optimizers `Celo2` and `Celo2Base`: construction, parameter groups, state, loading."""

from celo2.torch.optimizer.celo2 import Celo2, Celo2Base

__all__ = ["Celo2", "Celo2Base"]
