"""What runs inside Triton: numpy only, imports nothing of the package but itself."""
