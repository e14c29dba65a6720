"""Engines as they are, connected to etcd_pd through its public client; standard library until an engine is there."""
