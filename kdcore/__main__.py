"""So that `accelerate launch -m kdcore run RECIPE` works."""

from kdcore.cli.main import main

if __name__ == "__main__":
    main()
