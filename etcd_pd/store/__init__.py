"""etcd, and nothing but etcd: the core's transactions in, its records out."""
