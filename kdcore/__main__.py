"""So that `accelerate launch -m kdcore run RECIPE` works."""

from kdcore.cli import main

if __name__ == "__main__":
    main()
