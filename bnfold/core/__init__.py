"""The machine that moves affine maps. It knows no operator: each one's algebra is a file in ``rules``."""
