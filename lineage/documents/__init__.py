"""What is said about a candidate in forms that other tools read: provenance, bill of materials, cards, signature."""
