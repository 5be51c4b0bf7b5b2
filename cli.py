"""Run bnfold from a checkout: ``python cli.py model.onnx``."""

from bnfold.cli import main

if __name__ == "__main__":
    main()
