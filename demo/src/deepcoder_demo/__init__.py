"""The demo: a cluster, the platform, one run from Pending to Complete, and its results."""
