"""What others made: how its files are opened, and how much of them is read."""
