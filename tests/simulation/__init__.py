"""The whole system as one deterministic program: real agents and clients, a model of etcd, virtual time, one seed."""
