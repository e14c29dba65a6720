"""The process beside the engines: packets, etcd's answers and timers go into the core; what it decides goes out."""
