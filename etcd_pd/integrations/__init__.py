"""The old place of :mod:`etcd_pd.sglang`: it goes with version 0.3."""
