"""What training is supervised with: teacher, vision model, phrases, targets, losses."""
