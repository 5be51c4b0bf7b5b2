"""The machine that moves affine maps. It knows no operator: every operator's algebra is a file in ``rules``."""
