"""Students: small quantized policies that are ordinary SB3 policies."""
