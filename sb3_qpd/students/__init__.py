"""Students: small quantized policies that are ordinary policies of Stable-Baselines3."""
