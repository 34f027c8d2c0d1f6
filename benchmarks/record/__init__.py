"""What makes the tables of record."""
