"""How a model's parameters are drawn, and who decided: what was passed, what was a default."""
