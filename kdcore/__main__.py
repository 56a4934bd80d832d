"""Entry point of `python -m kdcore`, for `accelerate launch -m kdcore run RECIPE`."""

from kdcore.cli.main import main

if __name__ == "__main__":
    main()
