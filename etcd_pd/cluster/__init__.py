"""What the Helm chart's pods run beside agents and engines: certificates, etcd membership, roles."""
