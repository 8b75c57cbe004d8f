"""How long candidates take, what they cost and how good they are; and the choice of the best one for a machine."""
