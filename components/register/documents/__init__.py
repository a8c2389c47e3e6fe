"""What other tools read about a registered candidate: bill of materials, provenance, model card."""
