"""The old place of :mod:`etcd_pd.client.aio`: it goes with version 0.3."""

from .client.aio import AsyncClient, AsyncDecode, AsyncPrefill, connect

__all__ = ["AsyncClient", "AsyncDecode", "AsyncPrefill", "connect"]
