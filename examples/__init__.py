"""Examples; they import nothing of Triptych's own packages."""
