"""A run, or pictures, measured: figures and the report that shows them."""
