"""What is done to a model: finding its batch norms, writing their statistics, undoing it all."""
