"""etcd's messages: .proto files and what scripts/generate-etcdrpc.sh makes of them. Never edited by hand."""
