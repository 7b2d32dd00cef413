"""What comes from outside: bundled catalogs, and readers of checkpoints and the Hugging Face Hub."""
