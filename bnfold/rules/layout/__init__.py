"""Operators that only move values: the map's arrays move alike."""
