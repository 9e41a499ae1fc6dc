"""A page in the browser on runs that make pictures: people look before they read."""
