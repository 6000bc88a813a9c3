"""Publish checkpoints and fetch them again, through the Hugging Face Hub or a shared folder."""
