"""The old place of :mod:`etcd_pd.sglang.torch_group`: it goes with version 0.3."""

from ..sglang.torch_group import admit

__all__ = ["admit"]
