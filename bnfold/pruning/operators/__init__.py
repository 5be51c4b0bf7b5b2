"""One file per algebra; found automatically."""
