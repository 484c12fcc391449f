"""What the rows of the comparison are measured with."""
