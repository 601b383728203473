"""The one place that knows frameworks: their objects as functions of arrays, and back."""
