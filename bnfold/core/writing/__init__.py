"""Plans carried out: whole or not at all, each stored value rounded once."""
