"""What the Helm chart's Jobs and init containers run: values in; certificates, etcd members and roles out."""
