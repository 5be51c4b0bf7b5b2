"""What is known of a model: nodes, shapes and constants."""
