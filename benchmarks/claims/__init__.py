"""What the tables of record of the claims are made of."""
