"""A cluster small enough for a test: it runs rendered pods with Docker, as kubelet and the API server would.

`api` answers what the pods ask of Kubernetes, `pod` is one pod's life, with its `volumes` and each `container`,
`machine` makes pods of workloads and keeps them going.
"""
