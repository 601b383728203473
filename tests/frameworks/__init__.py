"""Six models in five frameworks, each trained as its users write it: without jinit, and with it."""
