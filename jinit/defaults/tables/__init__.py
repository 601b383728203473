"""The defaults of Keras and torch: which field of which layer gets which value."""
