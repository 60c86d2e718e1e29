"""A real control plane on one machine: Kubernetes, Istio and simulated nodes, without containers."""
