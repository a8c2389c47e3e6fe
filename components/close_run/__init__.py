"""Close run: the exit step, which derives the run's status from the records that its steps left."""
