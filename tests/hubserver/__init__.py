"""A small hub for tests: the routes of the Hugging Face Hub that its client needs, with faults on demand."""
