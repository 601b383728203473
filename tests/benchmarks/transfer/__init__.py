"""How far the best learning rate moves with width and depth."""
