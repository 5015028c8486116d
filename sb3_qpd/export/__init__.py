"""Files that a device runs without Python or torch, each with a proof that it is the student, bit for bit."""
