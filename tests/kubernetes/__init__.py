"""The chart on a real Kubernetes, under a load whose every answer is counted.

provider.py says where the cluster comes from, kube.py speaks to it, release.py is the chart installed on it, load.py
sends requests and judges their answers.
"""
