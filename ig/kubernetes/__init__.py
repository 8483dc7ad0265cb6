"""The pods and Services of a Kubernetes cluster, by their addresses: `--kubernetes`."""
