"""Whether fine-tuning loses what it was not shown, and what keeps it: docs/method.md has the results."""
