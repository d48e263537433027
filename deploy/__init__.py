"""What is deployed, and the programs that make it."""
