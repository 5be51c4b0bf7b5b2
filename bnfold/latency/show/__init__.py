"""How a report looks: as lines and tables, and as a figure."""
