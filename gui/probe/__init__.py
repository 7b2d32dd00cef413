"""The Probe tab: a real run beside the prediction."""
