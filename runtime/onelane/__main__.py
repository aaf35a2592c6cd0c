"""`python -m onelane` is `onelane`."""

from onelane.cli.main import main

main()
