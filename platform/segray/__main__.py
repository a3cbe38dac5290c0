"""`python -m segray COMMAND`: the same as `segray COMMAND`."""

from segray.cli.main import main

if __name__ == "__main__":
    main()
