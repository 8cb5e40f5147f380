"""Pure decisions: values in, values out. Knows no clock, network, Kubernetes client or kopf."""
