"""Linear branches that meet become one: siblings that are added, and layers in a row."""
