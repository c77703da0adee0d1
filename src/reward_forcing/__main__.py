"""`python -m reward_forcing`: the same as `rforce`."""

from reward_forcing.cli.main import main

if __name__ == "__main__":
    main()
