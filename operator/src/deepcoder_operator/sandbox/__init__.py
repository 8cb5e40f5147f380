"""SandboxPool: pure decisions (`scaler`, `plan`), pure builders, and the poller that asks judges for their load."""
