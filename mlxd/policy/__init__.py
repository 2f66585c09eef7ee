"""What the operator decided: policies/*.yaml, read strictly, held as one immutable set."""
